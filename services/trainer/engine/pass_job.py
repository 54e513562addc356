"""Forward and forward_backward jobs: what they ask, what they return, and a job while its parts run.

A job's examples may share packed rows with other jobs' and may need several rows. What it has gathered becomes its
result, and its gradient its run's, at the end of the pass or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.core.errors import FailedPreconditionError, InvalidArgumentError, PlatformError
from services.model.base import BaseModel
from services.model.logprobs import HeadPart, LossGradient, rows_at_once, target_logprobs
from services.trainer.engine.batch import Batch, Example
from services.trainer.engine.losses import Loss, Piece
from services.trainer.engine.optimizer import global_norm
from services.trainer.engine.run_state import RunState


@dataclass(frozen=True)
class Work:
    """One forward or forward_backward job."""

    training_run_id: str
    examples: Sequence[Example]
    loss: Loss
    backward: bool


@dataclass(frozen=True)
class Outcome:
    """What a job returns."""

    logprobs: list[Tensor]
    """float32 on the CPU, one for each example in order, of the shape of its target_tokens."""

    metrics: dict[str, float]


class JobUnderWay:
    """A job under way: its scratch gradient and what its rows have given so far."""

    def __init__(self, work: Work, run: RunState) -> None:
        self.work = work
        self.run = run
        self.scratch = run.weights.zeros() if work.backward else None
        self._logprobs: list[Tensor] = []
        self._pieces: list[Piece] = []

    def head(self, base: BaseModel, hidden_UD: Tensor, batch: Batch) -> HeadPart:
        """What the unembedding is to do with the hidden states of a part of the job."""
        if self.scratch is None:
            return HeadPart(batch.targets, self.run.weights)
        loss_gradient = self._loss_gradient(base, hidden_UD, batch)
        return HeadPart(batch.targets, self.run.weights, self.scratch, loss_gradient)

    def _loss_gradient(self, base: BaseModel, hidden_UD: Tensor, batch: Batch) -> LossGradient:
        """dL/dlogprobs of the head's rows.

        A loss that couples the elements of a datum, and tokens that share rows of the head, need the part's logprobs
        all together; these are computed beforehand only if the head does not have them together by itself.
        """
        loss, shared = self.work.loss, batch.shared
        if not (loss.spec.per_sequence or shared):
            return lambda rows, logprobs: loss.gradient(
                [(logprobs, {name: values[rows] for name, values in batch.inputs.items()})]
            )

        def coupled(logprobs_UK: Tensor) -> Tensor:
            logprobs_TK = logprobs_UK[shared.head_rows] if shared else logprobs_UK
            gradient_TK = loss.gradient(loss.pieces(logprobs_TK, batch.inputs, batch.lengths))
            if shared is None:
                return gradient_TK
            return torch.zeros_like(logprobs_UK).index_add_(0, shared.head_rows, gradient_TK)

        if len(batch.targets) <= rows_at_once(base):
            return lambda _, logprobs: coupled(logprobs)
        gradient_UK = coupled(target_logprobs(base, hidden_UD, batch.targets, self.run.weights))
        return lambda rows, _: gradient_UK[rows]

    def take(self, examples: Sequence[Example], batch: Batch, logprobs_UK: Tensor) -> None:
        """Keeps the log-probabilities of a part of the job; parts come in order."""
        logprobs_TK = logprobs_UK[batch.shared.head_rows] if batch.shared else logprobs_UK
        by_example = torch.split_with_sizes(logprobs_TK.cpu(), batch.lengths)
        for example, logprobs_NK in zip(examples, by_example, strict=True):
            self._logprobs.append(logprobs_NK[:, : example.targets.shape[1]].reshape(example.shape))
        self._pieces += self.work.loss.pieces(logprobs_TK, batch.inputs, batch.lengths)

    def outcome(self) -> Outcome | PlatformError:
        """The job's result, or its error if something is not finite."""
        if not all(logprobs.isfinite().all() for logprobs, _ in self._pieces):
            return FailedPreconditionError(
                f"the log-probabilities of training run {self.work.training_run_id} are not finite: its weights have "
                "diverged; load an earlier checkpoint",
                reason="NOT_FINITE",
            )
        metrics = self.work.loss.metrics(self._pieces)
        norm = global_norm(self.scratch.flat) if self.scratch else 0.0
        if not (math.isfinite(metrics["loss:sum"]) and math.isfinite(norm)):
            loss = f"the loss is {metrics['loss:sum']} and its gradient's norm {norm}"
            return InvalidArgumentError.at(
                "data", f"{loss}; allowed are loss_fn_inputs that keep both finite", reason="NOT_FINITE"
            )
        return Outcome(self._logprobs, metrics)

    def commit(self) -> None:
        """Makes the job's gradient part of its run's."""
        if self.scratch:
            self.run.gradient.add_(self.scratch.flat)
