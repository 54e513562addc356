"""Adapters of one shape side by side: one grouped product for all of them where each would take launches of its own.

A grouped product takes each range of a row's tokens through its own factor. Ranges are never multiplied with each
other's factors, so what one adapter holds stays in its own rows. Each row's gradients are rounded to the row's dtype
when they leave their product, and added up in float32.

T tokens of the row, S adapters, I and O features of a linear, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model.adapters import AdapterLayout, AdapterWeights
from services.model.base import BaseModel

ALIGNMENT = 8
"""Ranks and features are multiples of this: strides of what a grouped product reads are multiples of 16 bytes."""

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""(A [S, R, I], B [S, O, R]) by linear."""


def grouped_linears(base: BaseModel) -> dict[str, nn.Linear]:
    """The adaptable linears of the trunk; the unembedding has products of its own."""
    linears = base.adaptable_linears()
    return {name: linear for name, linear in linears.items() if name != base.family.unembedding}


def has_grouped_products(base: BaseModel) -> bool:
    """True if the device has kernels for grouped products: before Hopper they wait for the host."""
    return (
        base.device.type == "cuda"
        and base.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(base.device) >= (9, 0)
        and all(
            features % ALIGNMENT == 0
            for linear in grouped_linears(base).values()
            for features in (linear.in_features, linear.out_features)
        )
    )


class AdapterGroup:
    """Copies of the adapters that a row goes through, and what is found of their gradients.

    Args:
        adapters: of one shape, with one scale, and one rank that is a multiple of `ALIGNMENT`.
        ends: where in the row each one's tokens end.
        dtype: of the row.
        backward: True to compute gradients.
    """

    def __init__(
        self, adapters: Sequence[AdapterWeights], ends: Sequence[int], dtype: torch.dtype, *, backward: bool
    ) -> None:
        layout = adapters[0].layout
        flat_SP = torch.empty(len(adapters), layout.numel, dtype=dtype, device=adapters[0].flat.device)
        for own_P, adapter in zip(flat_SP, adapters, strict=True):
            own_P.copy_(adapter.flat)
        self.scale = adapters[0].scale_of(next(iter(layout.linears)))
        self.ends = torch.tensor(ends, dtype=torch.int32, device=flat_SP.device)
        self.factors = _factors(layout, flat_SP)
        self._gradients_SP = torch.zeros_like(flat_SP) if backward else None
        self.gradients = _factors(layout, self._gradients_SP) if self._gradients_SP is not None else None
        """Of the factors, but for the scale."""

    def add_gradients_to(self, buffers: Sequence[AdapterWeights]) -> None:
        """Adds what has been found to each adapter's buffer."""
        if self._gradients_SP is not None:
            for buffer, own_P in zip(buffers, self._gradients_SP, strict=True):
                buffer.flat.add_(own_P, alpha=self.scale)

    def product(self, input_TI: Tensor, factor_SIO: Tensor) -> Tensor:
        """[T, O]: each range through its own factor."""
        return F.grouped_mm(input_TI, factor_SIO, offs=self.ends)

    def outer(self, left_TO: Tensor, right_TI: Tensor) -> Tensor:
        """[S, O, I]: the product of each range's own tokens."""
        return F.grouped_mm(left_TO.t(), right_TI, offs=self.ends)


def _factors(layout: AdapterLayout, flat_SP: Tensor) -> Factors:
    """Views of adapters that lie side by side."""
    count = len(flat_SP)
    pieces = iter(torch.split_with_sizes(flat_SP, layout.sizes, dim=1))
    return {
        name: (next(pieces).view(count, rank, inputs), next(pieces).view(count, outputs, rank))
        for name, (rank, inputs, outputs) in layout.linears.items()
    }
