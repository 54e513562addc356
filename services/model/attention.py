"""Causal attention over a packed row: sequences laid end to end, each attending to itself alone.

No mask separates the sequences: their rows are never multiplied with each other, so a NaN of one tenant cannot reach
another (a masked score would still be NaN * 0). The boundaries travel as the `sequences` argument of the model's
forward. Call the model with use_cache=False: with its default it would build a cache that joins the sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from services.model.attention_arguments import refuse_arguments
from services.model.varlen import Stretches, varlen_causal

PACKED_ATTENTION = "tinker_packed"


@dataclass(frozen=True)
class PackedSequences:
    """Bounds of the sequences of one packed row."""

    lengths: tuple[int, ...]

    position_ids: Tensor
    """int64 [1, T]: each token's position in its own sequence."""

    queries: Stretches
    """The sequences as flash attention takes them."""

    keys: Stretches
    """The keys that they attend to: each sequence's own, behind those of the prefix that it continues."""

    key_rows: Tensor | None
    """int64: which token of the row each key comes from; None where no sequence continues any."""

    prefixes: tuple[tuple[int, int], ...]
    """(start, length) in the row of what each sequence continues, of length 0 for none; empty if none continues any."""

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, prefixes: Sequence[tuple[int, int]] = ()
    ) -> PackedSequences:
        """Lays sequences of the given lengths end to end; a sequence may continue a stretch before it."""
        continued = list(prefixes) or [(0, 0)] * len(lengths)
        positions = _ranges((first, first + length) for (_, first), length in zip(continued, lengths, strict=True))
        queries = _stretches(lengths, device)
        if not any(first for _, first in continued):
            return cls(tuple(lengths), positions[None].to(device), queries, queries, None, ())
        ends = accumulate(lengths)
        rows = _ranges(
            part
            for (start, first), length, end in zip(continued, lengths, ends, strict=True)
            for part in ((start, start + first), (end - length, end))
        )
        keys = _stretches([first + length for (_, first), length in zip(continued, lengths, strict=True)], device)
        return cls(tuple(lengths), positions[None].to(device), queries, keys, rows.to(device), tuple(continued))


def _ranges(ranges: Iterable[tuple[int, int]]) -> Tensor:
    """All numbers of [start, end) ranges one after another, int64."""
    return torch.cat([torch.arange(start, end) for start, end in ranges])


def _stretches(lengths: Sequence[int], device: torch.device) -> Stretches:
    return Stretches(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device), max(lengths))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sequences: PackedSequences,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls: [1, heads, T, head_dim] in, [1, T, heads, head_dim] out."""
    refuse_arguments(others)
    if query.is_cuda and query.dtype != torch.float32:
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        if sequences.key_rows is not None:
            key, value = key[sequences.key_rows], value[sequences.key_rows]
        return varlen_causal(query, key, value, sequences.queries, sequences.keys, scale=scaling)[None], None
    grouped = query.shape[1] != key.shape[1]
    by_sequence = (torch.split_with_sizes(tensor, sequences.lengths, dim=2) for tensor in (query, key, value))
    prefixes = sequences.prefixes or ((0, 0),) * len(sequences.lengths)
    pieces = []
    for q, k, v, (start, length) in zip(*by_sequence, prefixes, strict=True):
        if length == 0:
            pieces.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped))
            continue
        keys, values = (torch.cat([t[:, :, start : start + length], own], dim=2) for t, own in ((key, k), (value, v)))
        visible = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device).tril(length)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, scale=scaling, enable_gqa=grouped)
        pieces.append(attended)
    return torch.cat(pieces, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
