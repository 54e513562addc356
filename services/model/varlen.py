"""One interface to torch's variable-length flash attention, whose signature differs between torch releases.

CUDA only, bfloat16 or float16; key and value heads are fewer than query heads or as many. A sequence's queries are the
last tokens of its keys: the last query sees every key, and each one before it one less.

T query tokens, S key tokens, C sequences, H heads, G key heads, D head_dim, R rows of a store.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_PARAMETERS = inspect.signature(varlen_attn).parameters
_CAUSAL, _WHOLE = (-1, 0), (-1, -1)


class Stretches(NamedTuple):
    """Sequences laid end to end."""

    boundaries: Tensor
    """int32 [C + 1]: 0, then the end of each."""

    longest: int
    """Tokens of the longest."""


class Slots(NamedTuple):
    """Ranges of a store's rows, in any order."""

    starts: Tensor
    """int32 [C + 1]: the first row of each, then R."""

    used: Tensor
    """int32 [C]: rows of each that hold keys."""

    longest: int
    """At least the most that one uses; nothing but rounding depends on it."""


def varlen_causal(
    query_THD: Tensor,
    key_SGD: Tensor,
    value_SGD: Tensor,
    queries: Stretches,
    keys: Stretches,
    *,
    scale: float | None,
) -> Tensor:
    """Causal attention of each packed sequence to its own keys, [T, H, D]; scale None is 1 / sqrt(D)."""
    options: dict[str, Any] = {"scale": scale, "window_size": _CAUSAL}
    if "enable_gqa" in _PARAMETERS:  # before that, fewer key heads need no argument
        options["enable_gqa"] = True
    attended = varlen_attn(
        query_THD,
        key_SGD,
        value_SGD,
        queries.boundaries,
        keys.boundaries,
        queries.longest,
        keys.longest,
        **options,
    )
    return cast(Tensor, attended)


def varlen_slots(
    query_THD: Tensor, keys_RGD: Tensor, values_RGD: Tensor, queries: Stretches, slots: Slots, *, scale: float | None
) -> Tensor:
    """Causal attention of each packed sequence to its slot, [T, H, D]; only rows in use are read. No gradient."""
    window = _WHOLE if queries.longest == 1 else _CAUSAL  # a single query sees all, and that has a faster kernel
    if "seqused_k" in _PARAMETERS:
        attended = varlen_attn(
            query_THD,
            keys_RGD,
            values_RGD,
            queries.boundaries,
            slots.starts,
            queries.longest,
            slots.longest,
            scale=scale,
            window_size=window,
            enable_gqa=True,
            seqused_k=slots.used,
        )
        return cast(Tensor, attended)
    results: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(
        query_THD,
        keys_RGD,
        values_RGD,
        queries.boundaries,
        slots.starts,
        queries.longest,
        slots.longest,
        0.0,
        window == _CAUSAL,
        False,
        scale=scale,
        window_size_left=window[0],
        window_size_right=window[1],
        seqused_k=slots.used,
    )
    return results[0]
