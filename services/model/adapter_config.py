"""The shape of a LoRA adapter. No torch: a worker's asyncio side and a manifest name adapters too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.core.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.model.families import Family


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter. Its scale is alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA."""

    rank: int
    alpha: int = 32
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True
    seed: int | None = None
    """Seed of the initialisation; None for an adapter that was read from files which do not tell."""

    use_rslora: bool = False

    target_modules: tuple[str, ...] = ()
    """Last names of the adapted linears; empty for those that the three flags say."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InvalidArgumentError.must_be("lora_config.rank", "at least 1", self.rank)
        if self.alpha < 1:
            raise InvalidArgumentError.must_be("lora_config.alpha", "at least 1", self.alpha)
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if not (self.target_modules or self.train_attn or self.train_mlp or self.train_unembed):
            raise _adapts_nothing()

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def targets(self, family: Family) -> tuple[str, ...]:
        """Last names of the adapted linears: an explicit list, so that PEFT adapts these and nothing else.

        Raises:
            InvalidArgumentError: a target module is none of the family's, or nothing is adapted.
        """
        adaptable = family.last_names()
        if unknown := sorted(set(self.target_modules) - set(adaptable)):
            raise InvalidArgumentError.must_be(
                "lora_config.target_modules", f"some of {', '.join(adaptable)}", str(unknown)
            )
        if self.target_modules:
            return tuple(name for name in adaptable if name in self.target_modules)
        targets = family.last_names(attention=self.train_attn, mlp=self.train_mlp, unembed=self.train_unembed)
        if not targets:
            raise _adapts_nothing()
        return targets

    def shape(self, family: Family) -> dict[str, object]:
        """All that decides what the adapter computes with given weights; two adapters of one shape are exchangeable."""
        targets = self.targets(family)
        return {"rank": self.rank, "alpha": self.alpha, "use_rslora": self.use_rslora, "targets": targets}


def _adapts_nothing() -> InvalidArgumentError:
    rule = "such that it adapts something: set one of train_attn, train_mlp and train_unembed"
    return InvalidArgumentError.must_be("lora_config", rule)
