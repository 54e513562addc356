"""Keys and values of every running sequence, in one store per layer whose size is fixed when the engine starts.

A slot is a contiguous range of rows. It grows with its sequence, without moving while the rows behind it are free.
Attention sees a slot as one strided view and reads only the rows in use: rows of other sequences, and rows with old
contents, never enter a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.core.errors import InvalidArgumentError
from services.model.base import BaseModel


@dataclass(frozen=True)
class Slot:
    """Rows [start, end) of the store."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Rows in it."""
        return self.end - self.start


class FreeRanges:
    """Free rows as ascending, disjoint, non-adjacent ranges; the first that is long enough is taken."""

    def __init__(self, rows: int) -> None:
        self._free = [Slot(0, rows)]

    def reserve(self, rows: int) -> Slot | None:
        """A slot of exactly `rows` >= 1 rows; None if no gap is long enough."""
        for index, gap in enumerate(self._free):
            if gap.length >= rows:
                middle = gap.start + rows
                self._free[index : index + 1] = [Slot(middle, gap.end)] if middle < gap.end else []
                return Slot(gap.start, middle)
        return None

    def extend(self, slot: Slot, rows: int) -> Slot | None:
        """The same slot with `rows` rows in all, if those behind it are free; None if they are not."""
        missing = slot.start + rows - slot.end
        for index, gap in enumerate(self._free):
            if gap.start == slot.end and gap.length >= missing:
                left = Slot(gap.start + missing, gap.end)
                self._free[index : index + 1] = [left] if left.length else []
                return Slot(slot.start, slot.start + rows)
        return None

    @property
    def free(self) -> tuple[Slot, ...]:
        """The free ranges."""
        return tuple(self._free)

    def release(self, slot: Slot) -> None:
        """Takes a slot back."""
        gaps = sorted([*self._free, slot], key=lambda gap: gap.start)
        joined = gaps[:1]
        for gap in gaps[1:]:
            if gap.start == joined[-1].end:
                joined[-1] = Slot(joined[-1].start, gap.end)
            else:
                joined.append(gap)
        self._free = joined


def spare_rows(device: torch.device) -> int:
    """Rows behind those of the slots, where the padding of decode steps on a GPU is stored; see FlashForward."""
    return 1 if device.type == "cuda" else 0


class KVStore:
    """Keys and values [1, key heads, rows, head_dim] per layer, as attention takes them, and the rows in use.

    Raises:
        InvalidArgumentError: the base model has linear-attention layers, whose state is not stored.
    """

    def __init__(self, base: BaseModel, rows: int) -> None:
        if base.has_linear_attention:
            message = f"{base.name} has layers of the kind linear_attention, whose state a sampler does not keep yet"
            raise InvalidArgumentError.at("base_model", f"{message}; it can be trained, but not sampled from")
        size = base.kv_shape
        self.rows = rows
        """Tokens that it can hold."""

        self.spare_row = rows
        """On a GPU, a row that no slot has."""

        stored = rows + spare_rows(base.device)
        shape = (size.layer_count, 1, size.head_count, stored, size.head_size)
        self.keys_L1GRD = torch.zeros(shape, dtype=base.dtype, device=base.device)
        self.values_L1GRD = torch.zeros_like(self.keys_L1GRD)
        self._ranges = FreeRanges(rows)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes, from the start."""
        return self.keys_L1GRD.nbytes + self.values_L1GRD.nbytes

    @property
    def free_ranges(self) -> tuple[Slot, ...]:
        """Rows that no slot has, as ascending ranges that do not touch."""
        return self._ranges.free

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each [1, key heads, rows, head_dim]; writing to them writes to the store."""
        return self.keys_L1GRD[index], self.values_L1GRD[index]

    def reserve(self, rows: int) -> Slot | None:
        """A slot for a sequence of up to `rows` tokens; None while there is no space."""
        return self._ranges.reserve(rows)

    def extend(self, slot: Slot, rows: int) -> Slot | None:
        """The same slot with `rows` rows in all; None while the rows behind it are in use."""
        return self._ranges.extend(slot, rows)

    def shrink(self, slot: Slot, rows: int) -> Slot:
        """The same slot with its first `rows` rows only; the others are free."""
        if rows < slot.length:
            self._ranges.release(Slot(slot.start + rows, slot.end))
        return Slot(slot.start, slot.start + rows)

    def release(self, slot: Slot) -> None:
        """Gives a slot's rows to others."""
        self._ranges.release(slot)

    def copy(self, source: Slot, target: Slot, rows: int) -> None:
        """Copies the first `rows` rows of a slot into another, in every layer."""
        for store_L1GRD in (self.keys_L1GRD, self.values_L1GRD):
            copied = store_L1GRD[..., source.start : source.start + rows, :]
            store_L1GRD[..., target.start : target.start + rows, :].copy_(copied)
