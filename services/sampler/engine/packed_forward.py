"""The packed forward of one step: all chunks end to end in one row, from tokens to hidden states.

Each adapter's chunks are adjacent, so that every linear works on all tokens at once and each adapter on one range.

T tokens of the step, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.logprobs import unembed
from services.model.lora import LoraContext, Segment, install_lora
from services.sampler.engine.attention import SLOT_ATTENTION, PackedStep, Span, join_spans
from services.sampler.engine.kv import KVStore
from services.sampler.engine.routed_linears import Routes, install_linears
from services.sampler.engine.scheduler import ALIGNMENT, Chunk

AdapterRange = tuple[AdapterWeights | None, int]
"""An adapter, or none, and how many rows in succession go through it."""


@dataclass(frozen=True)
class PackedChunks:
    """The chunks of a step in the order of the packed row."""

    chunks: Sequence[Chunk]
    spans: tuple[Span, ...]
    tokens: list[int]

    positions: list[int]
    """The position of each token in its sequence."""

    rows: list[int]
    """The store's row of each token."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> PackedChunks:
        """Lays chunks end to end."""
        spans = tuple(_spans(chunks))
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for chunk, span in zip(chunks, spans, strict=True):
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            rows += range(span.slot_end - chunk.count, span.slot_end)
        return cls(chunks, spans, tokens, positions, rows)

    @property
    def adapters(self) -> list[AdapterRange]:
        """The adapter and the length of each chunk."""
        return [(chunk.sequence.group.adapter, chunk.count) for chunk in self.chunks]


class PackedForward(Protocol):
    """The forward pass of a base model over a KV store: chunks of many sequences in one packed row."""

    def admit(self, adapters: Iterable[AdapterWeights]) -> None:
        """Prepares adapters for the next steps.

        Raises:
            torch.OutOfMemoryError: there is no memory for them.
        """

    def ordered(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """The chunks in the order in which they are to be packed; each adapter's are adjacent before and after."""

    def forward(self, packed: PackedChunks) -> Tensor:
        """Hidden states [T, D], to be used before the next call; keys and values are in the store."""

    def logits(self, hidden_ND: Tensor, adapters: Sequence[AdapterRange]) -> Tensor:
        """float32 [N, V] of rows in ranges of these adapters and lengths."""


class LoopForward:
    """Runs on every device: attends slot by slot, and takes adapters one after another."""

    def __init__(self, base: BaseModel, store: KVStore, *, deterministic: bool) -> None:
        self._base = base
        self._store = store
        self._deterministic = deterministic
        self._plain = base.device.type == "cpu" and base.dtype == torch.float32
        self._lora: LoraContext | Routes
        if deterministic or self._plain:
            self._lora = install_linears(base, deterministic=deterministic)
        else:
            self._lora = install_lora(base)
        base.module.set_attn_implementation(SLOT_ATTENTION)

    def admit(self, adapters: Iterable[AdapterWeights]) -> None:
        """Nothing to do: adapters are prepared when they are first used."""

    def ordered(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """The chunks as they are."""
        return chunks

    def forward(self, packed: PackedChunks) -> Tensor:
        """See PackedForward."""
        numbers = [packed.tokens, packed.positions, packed.rows]
        tokens_T, positions_T, rows_T = torch.tensor(numbers, device=self._base.device)
        spans = _aligned(packed.spans) if self._deterministic else join_spans(packed.spans)
        with self._lora.segments(segments_of(packed.adapters)):
            step = PackedStep(self._store, tuple(spans), rows_T)
            return self._base.hidden_states(tokens_T, positions_T, step=step)

    def logits(self, hidden_ND: Tensor, adapters: Sequence[AdapterRange]) -> Tensor:
        """See PackedForward."""
        if not self._plain:
            return unembed(self._base, hidden_ND, segments_of(adapters))
        with self._lora.segments(segments_of(adapters)):
            logits_NV: Tensor = self._base.unembedding(hidden_ND)
        return logits_NV


def segments_of(adapters: Sequence[AdapterRange]) -> list[Segment]:
    """Segments of a row whose ranges have these adapters and lengths; neighbours with one adapter are joined."""
    segments, start = [], 0
    for _, ranges in groupby(adapters, key=lambda pair: id(pair[0])):
        joined = list(ranges)
        end = start + sum(count for _, count in joined)
        segments.append(Segment(start, end, joined[0][0]))
        start = end
    return segments


def _spans(chunks: Sequence[Chunk]) -> Iterator[Span]:
    """The range of each chunk in the packed row and in the store."""
    start = 0
    for chunk in chunks:
        slot = chunk.sequence.slot
        yield Span(start, start + chunk.count, slot.start, slot.start + chunk.end)
        start += chunk.count


def _aligned(spans: Sequence[Span]) -> Iterator[Span]:
    """The spans cut where aligned chunks may end, so that results do not depend on how a prompt was cut."""
    for span in spans:
        start, slot_end = span.start, span.slot_end - (span.end - span.start)
        while start < span.end:
            position = slot_end - span.slot_start
            count = min(span.end - start, ALIGNMENT - position % ALIGNMENT)
            slot_end += count
            yield Span(start, start + count, span.slot_start, slot_end)
            start += count
