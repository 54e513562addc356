"""The multi-adapter linear for float32 on a CPU. It has no backward pass, so it can prepare an adapter's products once.

Its second form is for the deterministic mode: every product, the adapters' too, is row-wise (services.model.rowwise).
It is not used otherwise: it doubles the weights' memory and was within 7 % of the plain kernels on an Intel Xeon.

N rows, I and O features of a linear, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from services.core.errors import FailedPreconditionError
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.frozen_linear import FrozenLinear
from services.model.lora import Segment
from services.model.rowwise import Product, pack

# A multiple of what torch's vector loops take at once.
_REGISTERS = 64

Addition = Callable[[Tensor, Tensor], object]
"""Adds an adapter's product of rows [N, I] to rows [N, O] in place."""


class Routes:
    """The adapter of each range of rows, for all linears of one base model."""

    def __init__(self, *, deterministic: bool) -> None:
        self._addition = _packed_addition if deterministic else _plain_addition
        self._prepared: WeakKeyDictionary[AdapterWeights, Mapping[str, Addition]] = WeakKeyDictionary()
        self.current: list[tuple[slice, Mapping[str, Addition]]] = []

    @contextmanager
    def segments(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Routes through the given segments inside the block; they are ascending and do not overlap."""
        outer = self.current
        self.current = [
            (slice(segment.start, segment.end), self._additions(segment.adapter))
            for segment in segments
            if segment.adapter is not None
        ]
        try:
            yield
        finally:
            self.current = outer

    def _additions(self, adapter: AdapterWeights) -> Mapping[str, Addition]:
        if adapter not in self._prepared:
            self._prepared[adapter] = {
                name: self._addition(a_RI, b_OR, adapter.scale_of(name))
                for name, (a_RI, b_OR) in adapter.linears.items()
            }
        return self._prepared[adapter]


class RoutedLinear(FrozenLinear):
    """A frozen linear that adds each segment's adapter."""

    def __init__(self, linear: nn.Linear, name: str, routes: Routes, product: Product | None) -> None:
        super().__init__(linear, name)
        self._routes = routes
        self._product = product

    def forward(self, input: Tensor) -> Tensor:
        """[..., N, I] to [..., N, O]; leading dimensions are 1."""
        input_NI = input.reshape(-1, self.in_features)
        output_NO = F.linear(input_NI, self.weight, self.bias) if self._product is None else self._product(input_NI)
        for rows, additions in self._routes.current:
            if (addition := additions.get(self.name)) is not None:
                addition(output_NO[rows], input_NI[rows])
        return output_NO.view(*input.shape[:-1], self.out_features)


def install_linears(base: BaseModel, *, deterministic: bool) -> Routes:
    """Puts the linear in place of every adaptable linear of a float32 base model on a CPU.

    Raises:
        FailedPreconditionError: `deterministic`, and this torch or this base model cannot do that.
    """
    routes = Routes(deterministic=deterministic)
    for name, linear in base.adaptable_linears().items():
        product = pack(linear.weight, linear.bias) if deterministic else None
        base.module.set_submodule(name, RoutedLinear(linear, name, routes, product))
    if deterministic and not base.replace_activations(_PaddedActivation):
        message = f"the deterministic mode needs dense MLPs in every layer, and {base.name} has others"
        raise FailedPreconditionError(message, reason="NOT_DETERMINISTIC")
    return routes


class _PaddedActivation(nn.Module):
    """An activation on rows of whole vector registers: torch computes a vector's remainder by another formula."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self._activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] to [..., I]."""
        features = input.shape[-1]
        activated: Tensor = self._activation(F.pad(input, (0, -features % _REGISTERS)))
        return activated[..., :features]


def _plain_addition(a_RI: Tensor, b_OR: Tensor, scale: float) -> Addition:
    a_IR, b_RO = a_RI.t(), b_OR.t()
    return lambda output_NO, input_NI: output_NO.addmm_(input_NI @ a_IR, b_RO, alpha=scale)


def _packed_addition(a_RI: Tensor, b_OR: Tensor, scale: float) -> Addition:
    down, up = pack(a_RI), pack(b_OR)
    return lambda output_NO, input_NI: output_NO.add_(up(down(input_NI)), alpha=scale)
