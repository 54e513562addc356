"""Adapters of any number of requests in two grouped products a linear, in bfloat16.

One by one, every adapter costs each linear launches of its own, and a step that generates is nothing but launches. Here
the factors of all adapters lie in banks, one place each; the rows of a step come in the order of places, and a grouped
product takes each range of rows through its place's factors. The last place is zero: rows without an adapter.

P places, R rank of the banks, N rows, I and O features of a linear.
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


class AdapterBank:
    """The banks of one base model's trunk. Grows to the largest rank and to the most adapters that it has seen."""

    def __init__(self, base: BaseModel) -> None:
        self._linears = grouped_linears(base)
        self._device, self._dtype = base.device, base.dtype
        self._places: WeakKeyDictionary[AdapterWeights, int] = WeakKeyDictionary()
        self._rank = 0
        self.places = 0
        """That adapters may have; rows without one have the place of this number."""

        self.version = 0
        """Changes when the factors move: what was recorded with them is void."""

        self.factors: Factors = {}
        """(A [P + 1, R, I], scaled B [P + 1, O, R]) by linear."""

        self.ends: Tensor | None = None
        """int32 [P + 1]: where each place's rows end, in the forward under way; None while no row has an adapter."""

        for name, linear in self._linears.items():
            base.module.set_submodule(name, BankedLinear(linear, name, self))

    def admit(self, adapters: Iterable[AdapterWeights]) -> None:
        """Gives each adapter a place.

        Raises:
            torch.OutOfMemoryError: there is no memory for so many, or for one of this rank; none has a place then.
        """
        new = [adapter for adapter in adapters if adapter not in self._places]
        if new:
            self._make_room(len(self._places) + len(new), max(adapter.config.rank for adapter in new))
            for adapter in new:
                self._fill(adapter)

    def place(self, adapter: AdapterWeights | None) -> int:
        """Of an admitted adapter."""
        return self.places if adapter is None else self._places[adapter]

    def ends_of(self, ranges: Sequence[tuple[int, int]], rows: int) -> Tensor:
        """int32 [P + 1] on the host: where each place's rows end.

        Args:
            ranges: (place, rows) in the order of places.
            rows: of the whole step; those behind the ranges have no adapter.
        """
        counts = [0] * (self.places + 1)
        for place, count in ranges:
            counts[place] += count
        ends = list(accumulate(counts))
        ends[-1] = rows
        return torch.tensor(ends, dtype=torch.int32)

    def _make_room(self, adapters: int, rank: int) -> None:
        """New banks where these are too small, with the adapters that have a place in them."""
        if adapters <= self.places and rank <= self._rank:
            return
        places = max(self.places, 1 << (adapters - 1).bit_length())
        rank = max(self._rank, -(-rank // ALIGNMENT) * ALIGNMENT)
        admitted = list(self._places)
        self._places.clear()
        self.places = self._rank = 0
        self.factors = {}  # there may not be room for both
        self.version += 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(places + 1, *shape, dtype=self._dtype, device=self._device)

        self.factors = {
            name: (zeros(rank, linear.in_features), zeros(linear.out_features, rank))
            for name, linear in self._linears.items()
        }
        self.places, self._rank = places, rank
        for adapter in admitted:
            self._fill(adapter)

    def _fill(self, adapter: AdapterWeights) -> None:
        """Copies an adapter to the first place that no other has."""
        taken = set(self._places.values())
        place = next(place for place in range(self.places) if place not in taken)
        for name, (a_PRI, b_POR) in self.factors.items():
            a_PRI[place].zero_()
            b_POR[place].zero_()
            if name in adapter.linears:
                a_RI, b_OR = adapter.linears[name]
                a_PRI[place, : len(a_RI)] = a_RI
                b_POR[place, :, : len(a_RI)] = b_OR * adapter.scale
        self._places[adapter] = place


class BankedLinear(FrozenLinear):
    """A frozen linear that adds each place's adapter to its rows."""

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
