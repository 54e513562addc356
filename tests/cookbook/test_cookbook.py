"""The cookbook's training loops run here unmodified. Run by `make cookbook`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.base_model import make_base_model
from testing.platform import API_KEY, BASE_MODEL, Platform

PYTHON = Path(sys.prefix) / "cookbook" / "bin" / "python"
PROGRAM = Path(__file__).with_name("program.py")

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="`make cookbook` installs the cookbook and its 80 packages, and runs this"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the base model's name is the path of its files, so that the cookbook finds the tokenizer offline."""
    made = tmp_path_factory.mktemp("cookbook")
    make_base_model(made / BASE_MODEL, steps=0)
    return made


@pytest.fixture(scope="module")
def platform(directory: Path) -> Iterator[Platform]:
    running = Platform(directory / BASE_MODEL, directory / "data")
    running.start()
    yield running
    assert running.stop() == 0


@pytest.mark.parametrize(
    ("loop", "steps", "measured"),
    [
        ("supervised", 64, "train_mean_nll"),
        ("rl", 3, "env/all/reward/total"),
        ("rl-async", 3, "env/all/reward/total"),
        ("rl-stable", 30, "env/all/reward/total"),
        ("dpo", 3, "dpo_loss"),
        ("distillation", 3, "teacher_kl"),
    ],
)
@pytest.mark.timeout(300)
def test_a_loop_runs_to_its_end(platform: Platform, directory: Path, loop: str, steps: int, measured: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    environment |= {"TINKER_BASE_URL": f"http://127.0.0.1:{platform.http_port}", "TINKER_API_KEY": API_KEY}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    log = directory / "logs" / loop
    done = subprocess.run(
        [PYTHON, PROGRAM, loop, BASE_MODEL, log],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    metrics = [line for line in lines if measured in line]  # a line at the end has the sums of all
    assert len(metrics) == steps
    if loop in ("supervised", "dpo"):
        assert metrics[-1][measured] < metrics[0][measured]
    if loop == "rl-stable":
        rewards = [line[measured] for line in metrics]
        assert sum(rewards[-5:]) > sum(rewards[:5]) + 1.5, "by 0.3 on average"
    if loop == "rl":
        assert abs(metrics[0]["optim/kl_sample_train_v1"]) < 1e-4, "sampler and trainer agree on policy"
