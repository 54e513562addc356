"""The packed forward for bfloat16 on a GPU: one attention call and two adapter products for a whole step.

A decode step has a fixed shape, so it is recorded once for each of a few numbers of sequences and replayed. It is
padded with tokens whose results are not used, in a row of the store that no slot has. A token's result depends on the
tokens beside it only by the order in which matrix products add up.

T tokens of the step, C chunks, D hidden size, P entries of the adapter bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.grouped import has_grouped_products
from services.model.logprobs import unembed
from services.model.rounding import next_power_of_two, round_up
from services.model.varlen import Slots, Stretches
from services.sampler.engine.adapter_bank import AdapterBank
from services.sampler.engine.attention import SLOT_ATTENTION, PackedStep
from services.sampler.engine.kv import KVStore
from services.sampler.engine.packed_forward import AdapterRange, PackedChunks, segments_of
from services.sampler.engine.recorded import Call, CudaRecord, Record
from services.sampler.engine.scheduler import Chunk

# Decode steps of up to this many sequences are padded to a power of two, larger ones to a multiple of it.
_SIZES = 8


class _Recorded(NamedTuple):
    """A recorded decode step, and the tensors that it reads."""

    replay: Call
    numbers: Tensor
    """int64 [5, C + 1]: token, position, row of the store, first row of the slot, rows in use; the last is unused."""

    ends: Tensor | None
    """int32 [P + 1], see AdapterBank; None for a step without adapters."""


class FlashForward:
    """A base model over a KV store on a GPU.

    Args:
        base: the base model.
        store: the store.
    """

    def __init__(self, base: BaseModel, store: KVStore) -> None:
        self._base = base
        self._store = store
        self._bank = AdapterBank(base)
        self._record: Record = CudaRecord()
        self._version = self._bank.version
        self._recorded: dict[tuple[int, bool], _Recorded] = {}
        """By sequences, and whether any has an adapter."""

        base.module.set_attn_implementation(SLOT_ATTENTION)

    @staticmethod
    def can_run(base: BaseModel) -> bool:
        """Whether the device has the kernels."""
        return has_grouped_products(base)

    def admit(self, adapters: Iterable[AdapterWeights]) -> None:
        """See PackedForward."""
        self._bank.admit(adapters)
        if self._bank.version != self._version:
            self._recorded.clear()
            self._record, self._version = CudaRecord(), self._bank.version

    def ordered(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """The chunks by the entries of their adapters."""
        return sorted(chunks, key=lambda chunk: self._bank.entry_of(chunk.sequence.group.adapter))

    def forward(self, packed: PackedChunks) -> Tensor:
        """See PackedForward."""
        if len(packed.tokens) == len(packed.spans):
            return self._decode(packed)
        lengths = [span.end - span.start for span in packed.spans]
        used = [span.slot_end - span.slot_start for span in packed.spans]
        starts = [span.slot_start for span in packed.spans]
        numbers = torch.tensor([packed.tokens, packed.positions, packed.rows], device=self._base.device)
        of_chunks = torch.tensor(
            [[0, *accumulate(lengths)], [*starts, self._store.rows], [*used, 0]],
            dtype=torch.int32,
            device=self._base.device,
        )
        queries = Stretches(of_chunks[0], max(lengths))
        slots = Slots(of_chunks[1], of_chunks[2, :-1], max(used))
        ends = self._ends(packed, len(packed.tokens))
        return self._run(numbers, queries, slots, ends.to(self._base.device) if ends is not None else None)

    def logits(self, hidden_ND: Tensor, adapters: Sequence[AdapterRange]) -> Tensor:
        """See PackedForward."""
        return unembed(self._base, hidden_ND, segments_of(adapters))

    def _decode(self, packed: PackedChunks) -> Tensor:
        """A step of one token for each sequence."""
        sequences = len(packed.tokens)
        size = _padded(sequences)
        ends = self._ends(packed, size)
        key = size, ends is not None
        if key not in self._recorded:
            self._recorded[key] = self._prepare(size, ends)
        recorded = self._recorded[key]
        spare = self._store.spare_row
        columns = zip(packed.tokens, packed.positions, packed.rows, packed.spans, strict=True)
        numbers = [(t, p, row, span.slot_start, span.slot_end - span.slot_start) for t, p, row, span in columns]
        numbers += [(0, 0, spare, spare, 1)] * (size + 1 - sequences)
        recorded.numbers.copy_(torch.tensor(numbers).t())
        if recorded.ends is not None and ends is not None:
            recorded.ends.copy_(ends)
        return recorded.replay()[:sequences]

    def _prepare(self, size: int, ends: Tensor | None) -> _Recorded:
        """Records a decode step of `size` sequences, which are all padding at first."""
        device, spare = self._base.device, self._store.spare_row
        numbers = torch.tensor([[0], [0], [spare], [spare], [1]], device=device).repeat(1, size + 1)
        own_ends = ends.to(device) if ends is not None else None
        boundaries = torch.arange(size + 1, dtype=torch.int32, device=device)

        def step() -> Tensor:
            starts, used = numbers[3].int(), numbers[4, :-1].int()
            slots = Slots(starts, used, self._store.rows)
            return self._run(numbers[:3, :-1], Stretches(boundaries, 1), slots, own_ends)

        return _Recorded(self._record(step), numbers, own_ends)

    def _run(self, numbers: Tensor, queries: Stretches, slots: Slots, ends: Tensor | None) -> Tensor:
        """Hidden states [T, D] of tokens, positions and rows, int64 [3, T]."""
        tokens_T, positions_T, rows_T = numbers
        self._bank.ends = ends
        try:
            step = PackedStep(self._store, (), rows_T, (queries, slots))
            return self._base.hidden_states(tokens_T, positions_T, step=step)
        finally:
            self._bank.ends = None

    def _ends(self, packed: PackedChunks, rows: int) -> Tensor | None:
        """The end of each bank entry's tokens, see AdapterBank; None if no token has an adapter."""
        if all(adapter is None for adapter, _ in packed.adapters):
            return None
        return self._bank.ends_of([(self._bank.entry_of(adapter), count) for adapter, count in packed.adapters], rows)


def _padded(sequences: int) -> int:
    """The number of sequences, padding included, of a decode step of this many."""
    return next_power_of_two(sequences) if sequences <= _SIZES else round_up(sequences, _SIZES)
