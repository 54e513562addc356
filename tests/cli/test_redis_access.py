"""Operators' commands and services meet a Redis that does not answer with one sentence, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError, TimeoutError

from services.cli import main
from services.cli.state_file import announce_redis_url, lock, running_redis_url
from services.core.config import Settings
from services.core.errors import UnavailableError

COMMANDS = [
    ("keys", "list"),
    ("keys", "create", "--tenant", "t"),
    ("storage", "verify"),
    ("storage", "gc", "--dry-run"),
]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_a_redis_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"unix://user:secret@{tmp_path}/nobody.sock"
    done = run("keys", "list", "--redis-url", url, "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert f"Error: Redis does not answer at unix://***@{tmp_path}/nobody.sock: " in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("failure", [ConnectionError("refused"), ExceptionGroup("", [TimeoutError("no answer")])])
def test_a_service_that_gives_up_names_its_redis(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def serve(settings: Settings) -> None:
        raise failure

    monkeypatch.setattr("services.gateway.main.serve", serve)
    arguments = ["--redis-url", "redis://:secret@here/0", "--data-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tinker-platform", "gateway", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: Redis does not answer at redis://***@here/0: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_platform_that_was_stopped_or_killed_does_not_run(command: tuple[str, ...], tmp_path: Path) -> None:
    lock(tmp_path).close()
    announce_redis_url(tmp_path, f"unix://{tmp_path}/gone.sock")
    done = run(*command, "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    sentence = f"no `tinker-platform up` runs in {tmp_path}: start it, or pass its --data-dir, or --redis-url"
    assert done.stderr == f"Error: {sentence}\n"


def test_a_platform_that_runs_is_found(tmp_path: Path) -> None:
    held = lock(tmp_path)
    announce_redis_url(tmp_path, "unix:///socket")
    assert running_redis_url(tmp_path) == "unix:///socket"
    held.close()
    with pytest.raises(UnavailableError):
        running_redis_url(tmp_path)
