"""The loss functions by name: what each one reads and which options it has. Torch-free, so that a gateway can validate.

services.trainer.engine.losses computes them; a test holds the two tables together. Every input has the
shape of target_tokens, [N] or [N, K]. target_tokens is int64, all others are float32. `mask` multiplies each element of
a loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from services.core.errors import InvalidArgumentError, quoted

CLIP_LOW, CLIP_HIGH = "clip_low_threshold", "clip_high_threshold"


@dataclass(frozen=True)
class LossSpec:
    """One loss function."""

    name: str

    required: tuple[str, ...]
    """Names that loss_fn_inputs must have."""

    optional: tuple[str, ...] = ()
    """Names that loss_fn_inputs may have; each counts as ones where it is absent."""

    factor: str = "advantages"
    """The input that every element of the loss is proportional to; `mask` is multiplied into it."""

    config: Mapping[str, float] = field(default_factory=dict)
    """Options of loss_fn_config with their defaults; none may be negative."""

    by_token: tuple[str, ...] = ()
    """Options that loss_fn_inputs may have as well, a value for each element in place of the one for all."""

    per_sequence: bool = False
    """Whether elements of one datum depend on each other; those of different data never do."""

    def options(self, given: Mapping[str, float]) -> dict[str, float]:
        """All options: those given, defaults for the others.

        Raises:
            InvalidArgumentError: names loss_fn_config["..."]: an option is unknown, not finite, negative, or the lower
                threshold is above the upper.
        """
        for name, value in given.items():
            path = _path(name)
            if name not in self.config:
                known = ", ".join(sorted(self.config)) or "none"
                raise InvalidArgumentError.must_be(path, f"an option of {self.name} ({known})", quoted(name))
            if not math.isfinite(value) or value < 0:
                raise InvalidArgumentError.must_be(path, "a finite number, at least 0", value)
        options = {**self.config, **given}
        if CLIP_LOW in options and options[CLIP_LOW] > options[CLIP_HIGH]:
            given_name, bound, other = (
                (CLIP_LOW, "at most", CLIP_HIGH) if CLIP_LOW in given else (CLIP_HIGH, "at least", CLIP_LOW)
            )
            rule = f"{bound} {other} = {options[other]:g}"
            raise InvalidArgumentError.must_be(_path(given_name), rule, options[given_name])
        return options


def _path(option: str) -> str:
    return f'loss_fn_config["{option[:100]}"]'


_CLIP = (CLIP_LOW, CLIP_HIGH)
_POLICY = ("target_tokens", "logprobs", "advantages")

LOSSES: Mapping[str, LossSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            LossSpec("cross_entropy", ("target_tokens",), ("weights", "mask"), factor="weights"),
            LossSpec("importance_sampling", _POLICY, ("mask",)),
            LossSpec("ppo", _POLICY, ("mask",), config={CLIP_LOW: 0.8, CLIP_HIGH: 1.2}, by_token=_CLIP),
            LossSpec("cispo", _POLICY, ("mask",), config={CLIP_LOW: 0.0, CLIP_HIGH: 4.0}, by_token=_CLIP),
            LossSpec("dro", _POLICY, ("mask",), factor="mask", config={"beta": 0.05}),
            LossSpec(
                "gspo",
                _POLICY,
                ("mask", "sequence_ratio_mask"),
                config={CLIP_LOW: 1 - 3e-4, CLIP_HIGH: 1 + 4e-4},
                by_token=_CLIP,
                per_sequence=True,
            ),
            LossSpec("stable_reinforce", _POLICY, ("mask",), config={CLIP_LOW: 0.5, CLIP_HIGH: 2.0}, per_sequence=True),
        )
    }
)
"""Every loss function that a trainer knows."""
