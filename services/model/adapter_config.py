"""The shape of a LoRA adapter. No torch: a worker's asyncio side and a manifest name adapters too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.core.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.model.families import Family


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter. Its scale is alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA.

    Ranks and alphas may differ from linear to linear in an adapter that was made elsewhere.
    """

    rank: int
    alpha: float = 32
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True
    seed: int | None = None
    """Seed of the initialisation; None for an adapter that was read from files which do not tell."""

    use_rslora: bool = False

    target_modules: tuple[str, ...] = ()
    """Last or full names of the adapted linears; empty for those that the three flags say."""

    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Ranks that are not `rank`, by full name of the linear."""

    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Alphas that are not `alpha`, by full name of the linear."""

    def __post_init__(self) -> None:
        if (rank := min((self.rank, *self.rank_pattern.values()))) < 1:
            raise InvalidArgumentError.must_be("lora_config.rank", "at least 1", rank)
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not math.isfinite(alpha):
                raise InvalidArgumentError.must_be("lora_config.alpha", "finite", alpha)
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if not (self.target_modules or self.train_attn or self.train_mlp or self.train_unembed):
            raise _adapts_nothing()

    @property
    def is_uniform(self) -> bool:
        """Whether all linears have one rank and one scale."""
        return not self.rank_pattern and not self.alpha_pattern

    def rank_of(self, linear: str) -> int:
        """The rank of a linear, by its full name."""
        return self.rank_pattern.get(linear, self.rank)

    def scale_of(self, linear: str) -> float:
        """Factor on B A of a linear, by its full name."""
        alpha, rank = self.alpha_pattern.get(linear, self.alpha), self.rank_of(linear)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, family: Family) -> tuple[str, ...]:
        """Last or full names of the adapted linears: an explicit list, so that PEFT adapts these and nothing else.

        Raises:
            InvalidArgumentError: a target module is none of the family's, or nothing is adapted.
        """
        adaptable = family.last_names()
        last_names = {name: name.rpartition(".")[2] for name in self.target_modules}
        if unknown := sorted(name for name, last in last_names.items() if last not in adaptable):
            raise InvalidArgumentError.must_be(
                "lora_config.target_modules", f"some of {', '.join(adaptable)}", str(unknown)
            )
        if self.target_modules:
            return tuple(sorted(last_names, key=lambda name: (adaptable.index(last_names[name]), name)))
        targets = family.last_names(attention=self.train_attn, mlp=self.train_mlp, unembed=self.train_unembed)
        if not targets:
            raise _adapts_nothing()
        return targets

    def shape(self, family: Family) -> dict[str, object]:
        """All that decides what the adapter computes with given weights; two adapters of one shape are exchangeable."""
        targets = self.targets(family)
        own = {"rank_pattern": dict(self.rank_pattern), "alpha_pattern": dict(self.alpha_pattern)}
        return {"rank": self.rank, "alpha": self.alpha, "use_rslora": self.use_rslora, "targets": targets, **own}


def _adapts_nothing() -> InvalidArgumentError:
    rule = "such that it adapts something: set one of train_attn, train_mlp and train_unembed"
    return InvalidArgumentError.must_be("lora_config", rule)
