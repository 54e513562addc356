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
    keys_RGD, values_RGD = step.store.layer(cast(int, module.layer_idx))
    keys_RGD.index_copy_(0, step.rows, key[0].transpose(0, 1))
    values_RGD.index_copy_(0, step.rows, value[0].transpose(0, 1))
    attended_1HTD = torch.empty_like(query)
    for span in step.spans:
        query_1HND = query[:, :, span.start : span.end]
        rows = slice(span.slot_start, span.slot_end)
        keys_1GRD, values_1GRD = keys_RGD[rows].transpose(0, 1)[None], values_RGD[rows].transpose(0, 1)[None]
        attend = _attend_one if span.end - span.start == 1 else _attend_chunk
        attended_1HTD[:, :, span.start : span.end] = attend(query_1HND, keys_1GRD, values_1GRD, scaling)
    return attended_1HTD.transpose(1, 2), None


def _attend_one(query_1H1D: Tensor, keys_1GRD: Tensor, values_1GRD: Tensor, scaling: float | None) -> Tensor:
    """One token sees every row, so the heads that share a key head can be its queries: no mask, no repeated keys."""
    grouped = query_1H1D.reshape(1, keys_1GRD.shape[1], -1, query_1H1D.shape[-1])
    return F.scaled_dot_product_attention(grouped, keys_1GRD, values_1GRD, scale=scaling).view_as(query_1H1D)


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
