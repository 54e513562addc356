"""Forward and forward_backward jobs: what they ask, what they return, and a job while its rows run.

A job's examples may share packed rows with other jobs' and may need several rows. What it has gathered becomes its
result, and its gradient its run's, at the end of the pass or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.core.errors import FailedPreconditionError, InvalidArgumentError, PlatformError
from services.model.base import BaseModel
from services.model.logprobs import LossGradient, target_logprobs, target_logprobs_and_gradient
from services.trainer.batch import Batch, Example
from services.trainer.losses import Loss, Piece
from services.trainer.optimizer import global_norm
from services.trainer.run_state import RunState
from services.trainer.sharing import common_beginning


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

    def head(self, base: BaseModel, hidden_PD: Tensor, examples: Sequence[Example], batch: Batch) -> Tensor:
        """Log-probabilities of the job's part of a row; returns dL/dhidden, zero for a job without a gradient."""
        shared = batch.shared
        hidden_UD = hidden_PD[shared.hidden_rows] if shared else hidden_PD
        if self.scratch is None:
            logprobs_UK = target_logprobs(base, hidden_UD, batch.targets, self.run.weights)
            d_hidden_PD = torch.zeros_like(hidden_PD)
        else:
            logprobs_UK, d_hidden_PD = target_logprobs_and_gradient(
                base,
                hidden_UD,
                batch.targets,
                adapter=self.run.weights,
                gradient=self.scratch,
                loss_gradient=self._loss_gradient(base, hidden_UD, batch),
            )
            if shared:
                d_hidden_PD = torch.zeros_like(hidden_PD).index_add_(0, shared.hidden_rows, d_hidden_PD)
        logprobs_TK = logprobs_UK[shared.head_rows] if shared else logprobs_UK
        by_example = torch.split_with_sizes(logprobs_TK.cpu(), batch.lengths)
        for example, logprobs_NK in zip(examples, by_example, strict=True):
            self._logprobs.append(logprobs_NK[:, : example.targets.shape[1]].reshape(example.shape))
        self._pieces += self.work.loss.pieces(logprobs_TK, batch.inputs, batch.lengths)
        return d_hidden_PD

    def _loss_gradient(self, base: BaseModel, hidden_UD: Tensor, batch: Batch) -> LossGradient:
        """What the head calls for each chunk of rows.

        A loss that couples the elements of a datum, and tokens that share rows of the head, need all logprobs first.
        """
        loss, shared = self.work.loss, batch.shared
        if not (loss.spec.per_sequence or shared):
            return lambda rows, logprobs: loss.gradient(
                [(logprobs, {name: values[rows] for name, values in batch.inputs.items()})]
            )
        logprobs_UK = target_logprobs(base, hidden_UD, batch.targets, self.run.weights)
        logprobs_TK = logprobs_UK[shared.head_rows] if shared else logprobs_UK
        gradient = loss.gradient(loss.pieces(logprobs_TK, batch.inputs, batch.lengths))
        if shared:
            gradient = torch.zeros_like(logprobs_UK).index_add_(0, shared.head_rows, gradient)
        return lambda rows, _: gradient[rows]

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


Row = list[tuple[JobUnderWay, list[Example]]]
"""One packed row: consecutive examples of one or several jobs."""


def fill_rows(jobs: Sequence[JobUnderWay], limit: int) -> Iterator[Row]:
    """Fills rows of at most `limit` tokens with the examples of all jobs in order; an example is never divided.

    What an example has in common with the one before counts once, since it is laid out once if that is worth it.
    """
    row: Row = []
    used = 0
    for job in jobs:
        for example in job.work.examples:
            same_job = row and row[-1][0] is job
            common = common_beginning(row[-1][1][-1].tokens, example.tokens) if same_job else 0
            if row and used + len(example.tokens) - common > limit:
                yield row
                row, used, common = [], 0, 0
            if not row or row[-1][0] is not job:
                row.append((job, []))
            row[-1][1].append(example)
            used += len(example.tokens) - common
    if row:
        yield row
