"""Causal attention of a packed step over the KV store.

New keys and values are written to their rows of the store first; then each chunk attends to its own slot, from the
slot's start to the chunk's last token. Chunks are never multiplied with each other, nor with unused rows: a NaN of one
request stays in its own rows, the result does not depend on the other requests of the step, and free rows cost nothing.
Decodes of one length in slots at even distances are one call with a batch dimension. In bfloat16 on a GPU one call of
flash attention takes all slots.

T tokens of the step, R rows of the store, S slots of a span, H heads, G key heads, D head_dim, N tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from services.model.attention_arguments import refuse_arguments
from services.model.varlen import Slots, Stretches, varlen_slots
from services.sampler.engine.kv import KVStore

SLOT_ATTENTION = "tinker_slots"


@dataclass(frozen=True)
class Span:
    """One chunk: tokens [start, end) of the step, which follow rows [slot_start, slot_end - N) of the store."""

    start: int
    end: int
    slot_start: int

    slot_end: int
    """Row after the chunk's last token."""

    slots: int = 1
    """Above 1: this many chunks of one token, whose slots hold equally many rows and lie `stride` rows apart."""

    stride: int = 0


def join_spans(spans: Iterable[Span]) -> Iterator[Span]:
    """The same spans with neighbours joined where one call can attend for all of them."""
    joined: Span | None = None
    for span in spans:
        longer = _join(joined, span) if joined is not None else None
        if longer is None and joined is not None:
            yield joined
        joined = longer or span
    if joined is not None:
        yield joined


def _join(first: Span, span: Span) -> Span | None:
    """`first` with one more slot; None if the span does not fit behind it."""
    stride = first.stride or span.slot_start - first.slot_start
    is_next = stride > 0 and span.slot_start == first.slot_start + first.slots * stride
    is_like = span.slot_end - span.slot_start == first.slot_end - first.slot_start
    one_each = span.end - span.start == 1 and first.end - first.start == first.slots
    if not (is_next and is_like and one_each):
        return None
    return replace(first, end=span.end, slots=first.slots + 1, stride=stride)


@dataclass(frozen=True)
class PackedStep:
    """The rows and spans of one step; passed as the `step` argument of the model's forward."""

    store: KVStore
    spans: tuple[Span, ...]

    rows: Tensor
    """int64 [T]: the store's row of each token."""

    flash: tuple[Stretches, Slots] | None = None
    """The chunks and their slots as flash attention takes them; None where it is not used."""


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: PackedStep,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls: [1, heads, T, head_dim] in, [1, T, heads, head_dim] out."""
    refuse_arguments(others)
    keys_1GRD, values_1GRD = step.store.layer(cast(int, module.layer_idx))
    keys_1GRD.index_copy_(2, step.rows, key)
    values_1GRD.index_copy_(2, step.rows, value)
    if step.flash is not None:
        query_THD, keys_RGD, values_RGD = (tensor[0].transpose(0, 1) for tensor in (query, keys_1GRD, values_1GRD))
        return varlen_slots(query_THD, keys_RGD, values_RGD, *step.flash, scale=scaling)[None], None
    tokens, heads, head_dim = query.shape[2], query.shape[1], query.shape[3]
    # One token sees every row of its slot, so the heads that share a key head can be its queries: no mask.
    grouped_TGHD = query[0].transpose(0, 1).reshape(tokens, keys_1GRD.shape[1], -1, head_dim)
    attended = []
    for span in step.spans:
        keys, values = (_rows(store, span) for store in (keys_1GRD, values_1GRD))
        if span.end - span.start == span.slots:
            query_SGHD = grouped_TGHD[span.start : span.end]
            attended_SGHD = F.scaled_dot_product_attention(query_SGHD, keys, values, scale=scaling)
            attended.append(attended_SGHD.reshape(span.slots, heads, head_dim))
        else:
            query_1HND = query[:, :, span.start : span.end]
            attended.append(_attend_chunk(query_1HND, keys, values, scaling)[0].transpose(0, 1))
    return torch.cat(attended)[None], None


def _rows(store_1GRD: Tensor, span: Span) -> Tensor:
    """The rows of a span's slots, [slots, key heads, rows of one slot, head_dim], as a view."""
    first_1GND = store_1GRD[:, :, span.slot_start : span.slot_end]
    if span.slots == 1:
        return first_1GND
    _, *strides = first_1GND.stride()
    stride = span.stride * strides[1]
    return first_1GND.as_strided((span.slots, *first_1GND.shape[1:]), (stride, *strides))


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
