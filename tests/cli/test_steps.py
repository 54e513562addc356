"""A run's metrics as steps, against sums done by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.cli.steps import steps
from tinker_client.types import TrainingMetrics

TIME = datetime(2026, 1, 31, tzinfo=UTC)


def entry(
    seq_id: int, method: str, step: int, tokens: int = 0, seconds: float = 0.0, **metrics: float
) -> TrainingMetrics:
    names = {"loss": "loss:sum", "norm": "grad_norm:mean", "rate": "learning_rate:mean", "gap": "kl_k3:mean"}
    named = {names[name]: value for name, value in metrics.items()}
    return TrainingMetrics(seq_id, TIME, method, step, named, tokens, seconds)


def test_the_passes_of_a_step_add_up_and_the_gap_is_the_mean_over_tokens() -> None:
    history = [
        entry(1, "ForwardBackward", 0, tokens=10, seconds=1.0, loss=3.0, gap=0.1),
        entry(2, "ForwardBackward", 0, tokens=30, seconds=2.0, loss=4.0, gap=0.5),
        entry(3, "OptimStep", 1, seconds=0.5, norm=2.0, rate=1e-4),
        entry(4, "ForwardBackward", 1, tokens=5, seconds=1.0, loss=2.0),
        entry(5, "OptimStep", 2, seconds=0.25, norm=1.0, rate=5e-5),
    ]
    first, second = steps(history)
    assert (first.step, first.loss, first.grad_norm, first.learning_rate) == (1, 7.0, 2.0, 1e-4)
    assert (first.tokens, first.seconds) == (40, 3.5)
    assert first.sampler_trainer_gap == pytest.approx((10 * 0.1 + 30 * 0.5) / 40)
    assert (second.step, second.loss, second.tokens, second.seconds) == (2, 2.0, 5, 1.25)
    assert second.sampler_trainer_gap is None


def test_forward_passes_and_passes_before_a_step_belong_to_no_step() -> None:
    history = [
        entry(1, "Forward", 0, tokens=100, seconds=9.0, loss=50.0),
        entry(2, "ForwardBackward", 0, tokens=10, seconds=1.0, loss=3.0),
        entry(3, "OptimStep", 1, norm=2.0, rate=1e-4),
        entry(4, "ForwardBackward", 1, tokens=10, seconds=1.0, loss=2.0),
    ]
    (only,) = steps(history)
    assert (only.loss, only.tokens) == (3.0, 10)


def test_a_step_without_a_pass_measures_no_loss() -> None:
    (only,) = steps([entry(1, "OptimStep", 1, norm=0.0, rate=1e-4)])
    assert (only.loss, only.tokens) == (None, 0)
