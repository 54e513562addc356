"""A forward or forward_backward job while its parts run.

A job's examples may share packed rows with other jobs' and may need several rows. What its rows have computed becomes
its result, and its gradient its run's, at the end of the pass or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.core.errors import FailedPreconditionError, InvalidArgumentError, PlatformError
from services.model.base import BaseModel
from services.model.logprobs import HeadPart, LossGradient, rows_at_once, target_logprobs
from services.trainer.engine.batch import Batch
from services.trainer.engine.losses import Loss, LossSegment
from services.trainer.engine.optimizer import global_norm
from services.trainer.engine.run_state import RunState
from services.trainer.values import Example, PassJob, PassResult


class JobUnderWay:
    """One job: its scratch gradient, and what its rows have computed so far."""

    def __init__(self, job: PassJob, run: RunState) -> None:
        self.job = job
        self.run = run
        self.scratch = run.weights.zeros() if job.backward else None
        self._loss = Loss(job.loss, job.options)
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._segments: list[LossSegment] = []

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
        loss, shared = self._loss, batch.shared
        if not (loss.spec.per_sequence or shared):
            return lambda rows, logprobs: loss.gradient(
                [LossSegment(logprobs, {name: values[rows] for name, values in batch.inputs.items()})]
            )

        def coupled(logprobs_UK: Tensor) -> Tensor:
            logprobs_TK = logprobs_UK[shared.head_rows] if shared else logprobs_UK
            gradient_TK = loss.gradient(loss.segments(logprobs_TK, batch.inputs, batch.lengths))
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
            self._logprobs.append(logprobs_NK[:, : example.targets.shape[1]].reshape(example.shape).numpy())
        self._segments += self._loss.segments(logprobs_TK, batch.inputs, batch.lengths)

    def result(self) -> PassResult | PlatformError:
        """The job's result, or its error if something is not finite."""
        if not all(segment.logprobs.isfinite().all() for segment in self._segments):
            return FailedPreconditionError(
                f"the log-probabilities of training run {self.job.training_run_id} are not finite: its weights have "
                "diverged; load an earlier checkpoint",
                reason="NOT_FINITE",
            )
        metrics = self._loss.metrics(self._segments)
        norm = global_norm(self.scratch.flat) if self.scratch else 0.0
        if not (math.isfinite(metrics["loss:sum"]) and math.isfinite(norm)):
            got = f"loss {metrics['loss:sum']}, gradient norm {norm}"
            rule = "such that the loss and its gradient's norm are finite"
            return InvalidArgumentError.must_be("data", rule, got, reason="NOT_FINITE")
        return PassResult(self._logprobs, metrics)

    def commit(self) -> None:
        """Makes the job's gradient part of its run's."""
        if self.scratch:
            self.run.gradient.add_(self.scratch.flat)
