"""Values that go into a trainer's engine and come out of it: plain numbers and numpy arrays, no tensors and no protos.

N tokens of an example, K targets a position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.core.losses import LossSpec


@dataclass(frozen=True)
class Example:
    """One datum in the form that every loss has: two-dimensional, with optional inputs filled in."""

    tokens: npt.NDArray[np.int64]
    """[N]: content ids (services.core.chunks), which prefix sharing compares."""

    targets: npt.NDArray[np.int64]
    """[N, K]."""

    inputs: Mapping[str, npt.NDArray[np.float32]]
    """What the loss reads beside logprobs, [N, K] each; the mask is multiplied into the loss's factor."""

    shape: tuple[int, ...]
    """[N] or [N, K]: of target_tokens as the client sent it, and so of the logprobs that it gets."""


@dataclass(frozen=True)
class PassJob:
    """One forward or forward_backward."""

    training_run_id: str
    examples: Sequence[Example]
    loss: LossSpec

    options: Mapping[str, float]
    """All options of the loss; see LossSpec.options."""

    backward: bool
    """Whether it adds a gradient to its run's."""


@dataclass(frozen=True)
class PassResult:
    """What a job returns."""

    logprobs: Sequence[npt.NDArray[np.float32]]
    """One for each example in order, of the example's shape."""

    metrics: Mapping[str, float]
    """Named `name:reduction`; see docs/numerics.md."""


@dataclass(frozen=True)
class AdamParams:
    """Hyperparameters of one optimizer step."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    grad_clip_norm: float
    """Largest global norm of the gradient; 0 or less turns clipping off."""
