"""The loss functions by name: what each one reads and which options it has. Torch-free, so that a gateway can validate.

What they compute stands in services.trainer.losses; a test holds the two tables together. Every input has the shape of
target_tokens, [N] or [N, K]. target_tokens is int64, all others are float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class LossSpec:
    """One loss function."""

    name: str

    required: tuple[str, ...]
    """Names that loss_fn_inputs must have."""

    optional: tuple[str, ...] = ()
    """Names that loss_fn_inputs may have."""

    factor: str = "advantages"
    """The input that the loss is proportional to: `mask` multiplies it, and where it is absent it counts as one."""

    config: Mapping[str, float] = field(default_factory=dict)
    """Options of loss_fn_config with their defaults."""


LOSSES: Mapping[str, LossSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            LossSpec("cross_entropy", ("target_tokens",), ("weights", "mask"), factor="weights"),
            LossSpec("importance_sampling", ("target_tokens", "logprobs", "advantages"), ("mask",)),
        )
    }
)
"""Every loss function that a trainer knows."""
