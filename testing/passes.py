"""Passes of the trainer's engine, as tests and benchmarks run them."""

from __future__ import annotations

import torch
from torch import Tensor

from services.core.errors import PlatformError
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import PassJob, PassResult


def run_alone(engine: LocalTrainerEngine, job: PassJob) -> PassResult:
    """A pass of one job; raises what the job fails with."""
    (result,) = engine.run_pass([job])
    if isinstance(result, PlatformError):
        raise result
    return result


def logprobs_of(result: PassResult) -> list[Tensor]:
    """The log-probabilities of each example as tensors."""
    return [torch.from_numpy(logprobs) for logprobs in result.logprobs]


def all_logprobs(result: PassResult) -> Tensor:
    """The log-probabilities of all examples end to end."""
    return torch.cat([logprobs.reshape(-1) for logprobs in logprobs_of(result)])
