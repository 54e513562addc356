"""Abilities of sampler engines: what a request can need and not every engine can do. No torch.

A sampler announces the abilities of its engine. The gateway refuses a request that needs another one, so that an
engine never answers something else than what was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType

from services.core.errors import InvalidArgumentError
from tinker_proto.internal.v1 import job_pb2


class Ability(Enum):
    """One ability. Names are those of the contract's enum, without its prefix."""

    ADAPTERS = "adapters"
    MERGE_WEIGHTS = "merge_weights"
    PROMPT_LOGPROBS = "prompt_logprobs"
    TOPK_PROMPT_LOGPROBS = "topk_prompt_logprobs"
    TARGET_PROMPT_LOGPROBS = "target_prompt_logprobs"
    PROMPT_ALT_TOKENS = "prompt_alt_tokens"
    RAW_LOGPROBS = "raw_logprobs"
    UNFILTERED_LOGPROBS = "unfiltered_logprobs"
    SEEDS = "seeds"
    STOP_STRINGS = "stop_strings"


ABILITIES: Mapping[Ability, str] = MappingProxyType(
    {
        Ability.ADAPTERS: "sampling from checkpoints",
        Ability.MERGE_WEIGHTS: "merging a checkpoint into the base model's weights",
        Ability.PROMPT_LOGPROBS: "log-probabilities of prompt tokens",
        Ability.TOPK_PROMPT_LOGPROBS: "the likeliest tokens at prompt positions",
        Ability.TARGET_PROMPT_LOGPROBS: "log-probabilities of given tokens at prompt positions",
        Ability.PROMPT_ALT_TOKENS: "tokens drawn in the place of prompt tokens",
        Ability.RAW_LOGPROBS: "log-probabilities of generated tokens at temperature 1",
        Ability.UNFILTERED_LOGPROBS: "log-probabilities before top_k and top_p at a temperature other than 0 and 1",
        Ability.SEEDS: "seeds that repeat a result",
        Ability.STOP_STRINGS: "stop strings",
    }
)
"""Every ability, in the words that a client reads."""


def announcement(abilities: Iterable[Ability]) -> job_pb2.AnnouncedAbilities:
    """What a sampler announces of its engine."""
    return job_pb2.AnnouncedAbilities(abilities=sorted(_number(ability) for ability in abilities))


def announced(status: job_pb2.WorkerStatus) -> frozenset[Ability]:
    """The abilities that a sampler has announced; numbers of a later version are left out.

    A sampler without an announcement of abilities has all of them: it is of a version whose only engine does, and
    refusing its requests would make an upgrade refuse what was accepted before.
    """
    if not status.HasField("abilities"):
        return frozenset(Ability)
    return frozenset(ability for ability in Ability if _number(ability) in status.abilities.abilities)


def _number(ability: Ability) -> job_pb2.Ability.ValueType:
    return job_pb2.Ability.Value(f"ABILITY_{ability.name}")


def missing_ability(ability: Ability, *, field: str, base_model: str) -> InvalidArgumentError:
    """The refusal of a request that needs an ability.

    Args:
        ability: the ability that the engine lacks.
        field: path of the field that asks for it.
        base_model: name of the base model.
    """
    message = f"needs {ABILITIES[ability]}, which the samplers of base model {base_model!r} do not support"
    return InvalidArgumentError.at(field, message, reason="MISSING_ABILITY")
