"""Steps of a training run: one `Step` for each optimizer step, made from the metrics of its operations.

Pure. The passes since the step before belong to an OptimStep. Losses, tokens and seconds add up; the gap between
sampler and trainer is the mean over the tokens. Passes that no OptimStep has followed yet belong to no step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_client.types import TrainingMetrics

LOSS = "loss:sum"
GRAD_NORM = "grad_norm:mean"
LEARNING_RATE = "learning_rate:mean"
GAP = "kl_k3:mean"
"""KL of the trainer's policy from the sampler's, estimated token by token."""


@dataclass(frozen=True)
class Step:
    """One optimizer step; None: not measured."""

    step: int
    """Number of optimizer steps of the run, this one included."""

    time: datetime
    loss: float | None
    """Sum over the step's forward_backward calls."""

    grad_norm: float | None
    """Before clipping."""

    learning_rate: float | None
    tokens: int
    seconds: float
    """Time that its operations took."""

    sampler_trainer_gap: float | None
    """Nats per token; only policy losses measure it."""


def steps(history: Iterable[TrainingMetrics]) -> Iterator[Step]:
    """The steps of a run from its metrics, both oldest first."""
    passes: list[TrainingMetrics] = []
    for entry in history:
        if entry.method == "ForwardBackward":
            passes.append(entry)
        elif entry.method == "OptimStep":
            yield _step(passes, entry)
            passes = []


def _step(passes: list[TrainingMetrics], optim_step: TrainingMetrics) -> Step:
    losses = [entry.metrics[LOSS] for entry in passes if LOSS in entry.metrics]
    gaps = [(entry.metrics[GAP], entry.tokens) for entry in passes if GAP in entry.metrics]
    gap_tokens = sum(tokens for _, tokens in gaps)
    return Step(
        step=optim_step.step,
        time=optim_step.time,
        loss=sum(losses) if losses else None,
        grad_norm=optim_step.metrics.get(GRAD_NORM),
        learning_rate=optim_step.metrics.get(LEARNING_RATE),
        tokens=sum(entry.tokens for entry in passes),
        seconds=sum(entry.seconds for entry in passes) + optim_step.seconds,
        sampler_trainer_gap=sum(gap * tokens for gap, tokens in gaps) / gap_tokens if gap_tokens else None,
    )
