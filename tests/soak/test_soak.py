"""The short form of `make soak`: long enough for everything to be made once, and gone again."""

from __future__ import annotations

from pathlib import Path

from testing.tiny_models import save_tiny_model
from tests.soak.soak import run_trial


def test_nothing_is_left_that_nobody_needs(tmp_path: Path) -> None:
    model_dir = save_tiny_model(tmp_path / "model", "qwen3")
    trial = run_trial(model_dir, tmp_path, seconds=2, every_s=2, rest_s=0, report=print)
    assert not trial.faults, trial.summary()
    assert all(program.sessions for program in trial.programs)
    judged = {"operation", "pins", "sources", "expiring"}
    assert judged <= trial.censuses[-1].keys.keys(), "nothing to judge"
