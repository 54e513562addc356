"""Adapters of any number of requests in two grouped products a linear, in bfloat16.

One by one, every adapter costs each linear kernel launches of its own, and launches dominate a decode step. Here the
factors of all adapters lie in banks, one entry each. The tokens of a step are ordered by entry, and a grouped product
takes each range of tokens through its entry's factors. The last entry is zero, for tokens without an adapter.

P entries, R rank of the banks, N tokens, I and O features of a linear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.frozen_linear import FrozenLinear
from services.model.grouped import ALIGNMENT, Factors, grouped_linears
from services.model.rounding import next_power_of_two, round_up


class AdapterBank:
    """The banks of one base model's trunk. Grows to the largest rank and to the most adapters that it has seen."""

    def __init__(self, base: BaseModel) -> None:
        self._linears = grouped_linears(base)
        self._device, self._dtype = base.device, base.dtype
        self._entries: WeakKeyDictionary[AdapterWeights, int] = WeakKeyDictionary()
        self._rank = 0
        self.capacity = 0
        """Entries for adapters; the zero entry follows them."""

        self.version = 0
        """Changes when the factors move, which makes recorded steps invalid."""

        self.factors: Factors = {}
        """(A [P + 1, R, I], scaled B [P + 1, O, R]) by linear."""

        self.ends: Tensor | None = None
        """int32 [P + 1]: where each entry's tokens end, in the current forward; None if no token has an adapter."""

        for name, linear in self._linears.items():
            base.module.set_submodule(name, BankedLinear(linear, name, self))

    def admit(self, adapters: Iterable[AdapterWeights]) -> None:
        """Gives each adapter an entry.

        Raises:
            torch.OutOfMemoryError: there is no memory for so many, or for one of this rank; none has an entry then.
        """
        new = [adapter for adapter in adapters if adapter not in self._entries]
        if new:
            self._reserve(len(self._entries) + len(new), max(adapter.layout.max_rank for adapter in new))
            for adapter in new:
                self._fill(adapter)

    def entry_of(self, adapter: AdapterWeights | None) -> int:
        """The entry of an admitted adapter; for None the zero entry."""
        return self.capacity if adapter is None else self._entries[adapter]

    def ends_of(self, ranges: Sequence[tuple[int, int]], tokens: int) -> Tensor:
        """int32 [P + 1] on the host: where each entry's tokens end.

        Args:
            ranges: (entry, tokens) in the order of entries.
            tokens: of the whole step; those behind the ranges have no adapter.
        """
        counts = [0] * (self.capacity + 1)
        for entry, count in ranges:
            counts[entry] += count
        ends = list(accumulate(counts))
        ends[-1] = tokens
        return torch.tensor(ends, dtype=torch.int32)

    def _reserve(self, adapters: int, rank: int) -> None:
        """Makes larger banks if these are too small, and copies the admitted adapters into them."""
        if adapters <= self.capacity and rank <= self._rank:
            return
        capacity = max(self.capacity, next_power_of_two(adapters))
        rank = max(self._rank, round_up(rank, ALIGNMENT))
        admitted = list(self._entries)
        self._entries.clear()
        self.capacity = self._rank = 0
        self.factors = {}  # there may not be memory for both
        self.version += 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(capacity + 1, *shape, dtype=self._dtype, device=self._device)

        self.factors = {
            name: (zeros(rank, linear.in_features), zeros(linear.out_features, rank))
            for name, linear in self._linears.items()
        }
        self.capacity, self._rank = capacity, rank
        for adapter in admitted:
            self._fill(adapter)

    def _fill(self, adapter: AdapterWeights) -> None:
        """Copies an adapter to the first free entry."""
        taken = set(self._entries.values())
        entry = next(entry for entry in range(self.capacity) if entry not in taken)
        for name, (a_PRI, b_POR) in self.factors.items():
            a_PRI[entry].zero_()
            b_POR[entry].zero_()
            if name in adapter.linears:
                a_RI, b_OR = adapter.linears[name]
                a_PRI[entry, : len(a_RI)] = a_RI
                b_POR[entry, :, : len(a_RI)] = b_OR * adapter.scale_of(name)
        self._entries[adapter] = entry


class BankedLinear(FrozenLinear):
    """A frozen linear that adds each entry's adapter to its tokens."""

    def __init__(self, linear: nn.Linear, name: str, bank: AdapterBank) -> None:
        super().__init__(linear, name)
        self._bank = bank

    def forward(self, input: Tensor) -> Tensor:
        """[..., N, I] to [..., N, O]; leading dimensions are 1."""
        input_NI = input.reshape(-1, self.in_features)
        output_NO = F.linear(input_NI, self.weight, self.bias)
        if (ends := self._bank.ends) is not None:
            a_PRI, b_POR = self._bank.factors[self.name]
            projected_NR = F.grouped_mm(input_NI, a_PRI.transpose(1, 2), offs=ends)
            output_NO.add_(F.grouped_mm(projected_NR, b_POR.transpose(1, 2), offs=ends))
        return output_NO.view(*input.shape[:-1], self.out_features)
