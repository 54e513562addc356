"""The short form of `make chaos`."""

from __future__ import annotations

from pathlib import Path

from testing.tiny_models import save_tiny_model
from tests.chaos.chaos import run_trial


def test_nothing_is_lost_doubled_or_changed_whatever_dies(tmp_path: Path) -> None:
    model_dir = save_tiny_model(tmp_path / "model", "qwen3")
    trial = run_trial(model_dir, tmp_path, kills=12, seed=7, report=print)
    assert not trial.faults, trial.summary()
    assert trial.operations > 0
