"""Causal attention of a packed step over the KV store.

New keys and values are written to their rows of the store first; then each chunk attends to its own slot, from the
slot's start to the chunk's last token. Chunks are never multiplied with each other, nor with rows that nobody uses: a
NaN of one request stays its own, the result does not depend on who else is in the step, and empty slots cost nothing.

T tokens of the step, R rows of the store, H heads, G key heads, D head_dim, N tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from services.sampler.kv import KVStore

SLOT_ATTENTION = "tinker_slots"


@dataclass(frozen=True)
class Span:
    """One chunk: tokens [start, end) of the step, which follow rows [slot_start, slot_end - N) of the store."""

    start: int
    end: int
    slot_start: int

    slot_end: int
    """Row after the chunk's last token."""


@dataclass(frozen=True)
class PackedStep:
    """Where the tokens of one step belong; travels as the `step` argument of the model's forward."""

    store: KVStore
    spans: tuple[Span, ...]

    rows: Tensor
    """int64 [T]: the store's row of each token."""


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: PackedStep,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls: [1, heads, T, head_dim] in, [1, T, heads, head_dim] out."""
    keys_1GRD, values_1GRD = step.store.layer(cast(int, module.layer_idx))
    keys_1GRD.index_copy_(2, step.rows, key)
    values_1GRD.index_copy_(2, step.rows, value)
    tokens, heads, head_dim = query.shape[2], query.shape[1], query.shape[3]
    # One token sees every row of its slot, so the heads that share a key head can be its queries: no mask.
    grouped_TGHD = query[0].transpose(0, 1).reshape(tokens, keys_1GRD.shape[1], -1, head_dim)
    attended = []
    for span in step.spans:
        keys, values = (store[:, :, span.slot_start : span.slot_end] for store in (keys_1GRD, values_1GRD))
        if span.end - span.start == 1:
            query_1GHD = grouped_TGHD[span.start : span.end]
            attended_1GHD = F.scaled_dot_product_attention(query_1GHD, keys, values, scale=scaling)
            attended.append(attended_1GHD.reshape(1, heads, head_dim))
        else:
            query_1HND = query[:, :, span.start : span.end]
            attended.append(_attend_chunk(query_1HND, keys, values, scaling)[0].transpose(0, 1))
    return torch.cat(attended)[None], None


def _attend_chunk(query_1HND: Tensor, keys_1GRD: Tensor, values_1GRD: Tensor, scaling: float | None) -> Tensor:
    """Token n of N sees all rows but the last N - 1 - n."""
    tokens, rows = query_1HND.shape[2], keys_1GRD.shape[2]
    mask_NR = None
    if rows > tokens:
        mask_NR = torch.ones(tokens, rows, dtype=torch.bool, device=query_1HND.device).tril(rows - tokens)
    return F.scaled_dot_product_attention(
        query_1HND,
        keys_1GRD,
        values_1GRD,
        attn_mask=mask_NR,
        is_causal=mask_NR is None,
        scale=scaling,
        enable_gqa=query_1HND.shape[1] != keys_1GRD.shape[1],
    )


AttentionInterface.register(SLOT_ATTENTION, slot_attention)
