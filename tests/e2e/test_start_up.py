"""What cannot start says why in a sentence, at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from testing.platform import Platform, free_port


def up(tmp_path: Path, base_model: str, port: int, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli.main", "up", "--base-model", base_model, *more]
    options = ["--data-dir", str(tmp_path / "data"), "--grpc-port", str(port), "--http-port", str(free_port())]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)


def test_a_base_model_that_is_not_there(tmp_path: Path) -> None:
    failed = up(tmp_path, f"x={tmp_path / 'nowhere'}", free_port())
    assert failed.returncode == 1
    assert "must be a directory with a config.json" in failed.stderr
    assert "nowhere)" in failed.stderr
    assert "starting" not in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_family_that_is_not_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    failed = up(tmp_path, f"x={tmp_path}", free_port())
    assert failed.returncode == 1
    assert "'gpt2'" in failed.stderr
    assert "qwen3" in failed.stderr
    assert "starting" not in failed.stderr


def test_a_model_that_never_loads_ends_up_with_what_its_worker_said_last(tmp_path: Path, model_dir: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    failed = up(tmp_path, f"x={tmp_path / 'cut'}", free_port(), "--drain-seconds", "1")
    assert failed.returncode == 1
    assert "export TINKER_API_KEY=tml-" in failed.stdout
    last = failed.stderr.splitlines()[-1]
    assert re.match(r"Error: (trainer|sampler) x cannot start \(exit code 2\): base_model: must be ", last)
    assert "model.safetensors: " in last
    assert "restarting" not in failed.stderr
    assert "/logs/" in last


def test_two_models_of_one_name(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "tiny", tmp_path / "b" / "tiny"
    one.mkdir(parents=True)
    other.mkdir(parents=True)
    failed = up(tmp_path, str(one), free_port(), "--base-model", str(other))
    assert failed.returncode == 2
    assert f"base_model: must be one model for each name (got two called 'tiny'): {one} and {other}" in failed.stderr
    assert "starting" not in failed.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        failed = up(tmp_path, "x=y", port)
    assert failed.returncode == 1
    assert f"127.0.0.1:{port}" in failed.stderr


def test_a_data_directory_that_is_in_use(platform: Platform, tmp_path: Path) -> None:
    os.symlink(platform.data_dir, tmp_path / "data")
    failed = up(tmp_path, "x=y", free_port())
    assert failed.returncode == 1
    assert "another `tinker-platform up`" in failed.stderr


def test_a_platform_whose_redis_was_lost(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "identity").write_text("0123\n")
    failed = up(tmp_path, "x=y", free_port())
    assert failed.returncode == 1
    assert "belongs to another Redis or to one that was lost" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "service", [["gateway"], ["trainer", "--base-model", "x=y"], ["sampler", "--base-model", "x=y"]]
)
def test_a_service_over_the_storage_of_another_redis(
    redis_url: str, connection: RedisConnection, tmp_path: Path, service: list[str]
) -> None:
    (tmp_path / "identity").write_text("0123\n")
    with redis.Redis.from_url(redis_url) as commands:
        commands.hset(keyspace.IDENTITY, "id", "4567")
    command = [sys.executable, "-m", "services.cli.main", *service, "--redis-url", redis_url]
    options = ["--data-dir", str(tmp_path), "--grpc-port", str(free_port()), "--http-port", str(free_port())]
    options = options if service == ["gateway"] else options[:2]
    failed = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)
    assert failed.returncode == 1
    assert "belongs to another Redis: its id is 0123, and that of this Redis 4567" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]
