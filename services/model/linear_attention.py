"""Linear attention in a packed row: every sequence from a state of its own.

A linear-attention layer hands a state from token to token and knows no boundaries: in a packed row the state of one
sequence would run on into the next, and nothing would show it. So these layers get a row for each sequence, padded at
the end, where nothing follows that could see the padding. All else of the model stays packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from services.model.attention import PackedSequences
from services.model.base import BaseModel
from services.model.rounding import ceil_div

CHUNK = 64
"""Tokens that the layers of transformers compute at once; they pad every row to whole chunks themselves."""


def keep_sequences_apart(base: BaseModel) -> None:
    """Gives the linear-attention layers of a base model the sequences of a packed row apart. Call it once."""
    for mixer in base.mixers("state"):
        mixer.forward = _apart(mixer.forward)


def _apart(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def packed(hidden_states: Tensor, *, sequences: PackedSequences, **options: Any) -> Tensor:
        """[1, T, D] in and out."""
        whole = _with_prefixes(hidden_states[0], sequences)
        mixed: list[Tensor] = [hidden_states] * len(whole)
        for members in _of_as_many_chunks([len(tokens_ND) for tokens_ND in whole]):
            rows_BND = forward(pad_sequence([whole[member] for member in members], batch_first=True), **options)
            for member, row_ND in zip(members, rows_BND, strict=True):
                mixed[member] = row_ND[: len(whole[member])][-sequences.lengths[member] :]
        return torch.cat(mixed)[None]

    return packed


def _with_prefixes(hidden_TD: Tensor, sequences: PackedSequences) -> list[Tensor]:
    """Hidden states of each sequence behind those of what it continues."""
    pieces = torch.split_with_sizes(hidden_TD, sequences.lengths)
    if not sequences.prefixes:
        return list(pieces)
    return [
        torch.cat([hidden_TD[start : start + length], own_ND])
        for own_ND, (start, length) in zip(pieces, sequences.prefixes, strict=True)
    ]


def _of_as_many_chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Groups of sequences that one call can take: padding them together adds nothing to what the layer pads itself."""
    by_chunks: dict[int, list[int]] = {}
    for member, length in enumerate(lengths):
        by_chunks.setdefault(ceil_div(length, CHUNK), []).append(member)
    return list(by_chunks.values())
