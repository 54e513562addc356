"""The multi-adapter linear: one packed row through the frozen weight, and each range of it through its own adapter.

`install_lora` puts it in place of every adaptable linear once. Inside `with context.segments([...])` a linear computes
x W + s (x A^T) B^T per contiguous token range; outside it computes x W alone. Ranges never mix, forward or backward, so
what one adapter holds (a NaN, say) stays in its own rows. Gradients of A and B go straight into the segment's buffer.
Several segments of one shape go through grouped products where the device has them (services.model.grouped).
Where the products with W are row-wise (see services.model.rowwise) a segment's bits do not depend on its neighbours.

T tokens of the row, N tokens of a segment, I and O the linear's features, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.frozen_linear import FrozenLinear
from services.model.grouped import ALIGNMENT, AdapterGroup, has_grouped_products
from services.model.precision import addmm_fp32_
from services.model.rowwise import FrozenProducts, RowwiseSiLU, addmm_rows_, aligned_rows, frozen_products, is_rowwise


@dataclass(frozen=True)
class Segment:
    """A contiguous token range of the packed row and the adapter that it goes through."""

    start: int
    end: int

    adapter: AdapterWeights | None
    """None: the base model alone."""

    gradient: AdapterWeights | None = None
    """Buffer of the adapter's layout that its gradient is added to; None: nothing flows back through this range."""


class LoraContext:
    """The segments that the installed linears see.

    A plain attribute, not a context variable: recomputation during a backward pass may run on a thread of autograd's.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, rowwise: bool, grouped: bool) -> None:
        self.current: tuple[Segment, ...] = ()
        self.group: AdapterGroup | None = None
        """The current segments' adapters if they go through the linears together."""

        self.rowwise = rowwise
        """True if a segment's results have the same bits whatever lies beside it."""

        self.grouped = grouped
        """True if segments that can go through the linears together do."""

        self._dtype = dtype

        # The embedding is frozen, so nothing that enters the first layer requires a gradient; this makes autograd
        # record the adapters there all the same.
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    @contextmanager
    def segments(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Routes through the given segments inside the block; they are ascending and do not overlap.

        Their gradients are complete when the block has ended.
        """
        outer = self.current, self.group
        self.current, self.group = tuple(segments), self._group(segments)
        try:
            yield
            if self.group is not None:
                self.group.add_gradients_to([segment.gradient for segment in segments if segment.gradient is not None])
        finally:
            self.current, self.group = outer

    def _group(self, segments: Sequence[Segment]) -> AdapterGroup | None:
        """Segments that lie end to end, of adapters of one shape, all with a gradient or none; None if they do not."""
        adapters = [segment.adapter for segment in segments if segment.adapter is not None]
        starts = [0, *(segment.end for segment in segments)]
        backward = [segment.gradient is not None for segment in segments]
        if not (
            self.grouped
            and len(adapters) == len(segments) > 1
            and len(set(backward)) == 1
            and all(segment.start == start for segment, start in zip(segments, starts, strict=False))
            and adapters[0].config.rank % ALIGNMENT == 0
            and all(adapter.config.is_uniform and _alike(adapter, adapters[0]) for adapter in adapters)
        ):
            return None
        return AdapterGroup(adapters, starts[1:], self._dtype, backward=backward[0])


class MultiLoraLinear(FrozenLinear):
    """A frozen linear that adds each segment's adapter."""

    def __init__(self, linear: nn.Linear, name: str, context: LoraContext, products: FrozenProducts) -> None:
        super().__init__(linear, name)
        self.products = products
        self._context = context

    def forward(self, input: Tensor) -> Tensor:
        """[..., T, I] to [..., T, O]; leading dimensions are 1 while segments are set."""
        if (group := self._context.group) is not None and self.name in group.factors:
            return self._grouped(input, group)
        parts = [part for segment in self._context.current if (part := _part(segment, self.name))]
        input_TI = input.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and (input.requires_grad or any(part.gradient for part in parts)):
            anchor = self._context.anchor
            output_TO = cast(Tensor, _Adapted.apply(input_TI, anchor, self.products, parts))  # type: ignore[no-untyped-call]
        else:
            output_TO = self.products.forward(input_TI)
            _add_adapters_(output_TO, input_TI, parts)
        return output_TO.view(*input.shape[:-1], self.out_features)

    def _grouped(self, input: Tensor, group: AdapterGroup) -> Tensor:
        anchor = self._context.anchor if group.gradients is not None else self._context.anchor.detach()
        input_TI = input.reshape(-1, self.in_features)
        output_TO = cast(Tensor, _Grouped.apply(input_TI, anchor, self.products, group, self.name))  # type: ignore[no-untyped-call]
        return output_TO.view(*input.shape[:-1], self.out_features)


def install_lora(base: BaseModel) -> LoraContext:
    """Replaces every adaptable linear of a base model by the multi-adapter linear. Call it once."""
    linears = base.adaptable_linears()
    products = {name: frozen_products(linear) for name, linear in linears.items()}
    rowwise, grouped = _make_rowwise(base, products), has_grouped_products(base)
    context = LoraContext(base.device, base.dtype, rowwise=rowwise, grouped=grouped)
    for name, linear in linears.items():
        base.module.set_submodule(name, MultiLoraLinear(linear, name, context, products[name]))
    return context


def _make_rowwise(base: BaseModel, products: Mapping[str, FrozenProducts]) -> bool:
    """Makes the activations row-wise if all products are; True if the base model is row-wise throughout then."""
    linears = base.adaptable_linears()
    one_of_each = {linear.weight.shape: (linear, products[name]) for name, linear in linears.items()}
    if base.activation != "silu" or not all(is_rowwise(*pair) for pair in one_of_each.values()):
        return False
    return base.replace_activations(lambda _: RowwiseSiLU())


def _alike(one: AdapterWeights, other: AdapterWeights) -> bool:
    """Whether two uniform adapters have the same scale and layout."""
    first = next(iter(one.layout.linears))
    return one.scale_of(first) == other.scale_of(first) and one.layout == other.layout


class _Part(NamedTuple):
    """The part of one linear's output that a segment changes, and how."""

    rows: slice
    a: Tensor
    b: Tensor
    scale: float
    gradient: tuple[Tensor, Tensor] | None
    """Buffers that the gradients of A [R, I] and B [O, R] are added to."""


def _part(segment: Segment, name: str) -> _Part | None:
    """None where the segment leaves the linear as it is."""
    if segment.adapter is None or name not in segment.adapter.linears:
        return None
    gradient = segment.gradient.linears[name] if segment.gradient else None
    rows = slice(segment.start, segment.end)
    return _Part(rows, *segment.adapter.linears[name], segment.adapter.scale_of(name), gradient)


def _add_adapters_(output_TO: Tensor, input_TI: Tensor, parts: Sequence[_Part]) -> list[Tensor]:
    """Adds s (x A^T) B^T to each segment's rows in place; returns x A^T [N, R] of each."""
    projected = []
    for part in parts:
        projected_NR = aligned_rows(input_TI, part.rows) @ part.a.to(input_TI.dtype).t()
        addmm_rows_(output_TO, part.rows, projected_NR, part.b.to(input_TI.dtype).t(), scale=part.scale)
        projected.append(projected_NR)
    return projected


class _Adapted(torch.autograd.Function):
    """The frozen product with every segment's adapter; gradients to A and B go into the segments' buffers."""

    @staticmethod
    def forward(ctx: Any, input_TI: Tensor, anchor: Tensor, products: FrozenProducts, parts: Sequence[_Part]) -> Tensor:
        output_TO = products.forward(input_TI)
        ctx.save_for_backward(input_TI, *_add_adapters_(output_TO, input_TI, parts))
        ctx.products, ctx.parts = products, parts
        return output_TO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (d_output_TO,) = gradients
        input_TI, *projected = ctx.saved_tensors
        d_input_TI = ctx.products.backward(d_output_TO) if ctx.needs_input_grad[0] else None
        for part, projected_NR in zip(ctx.parts, projected, strict=True):
            if part.gradient is None:
                continue
            d_a_RI, d_b_OR = part.gradient
            d_output_NO = aligned_rows(d_output_TO, part.rows)
            d_projected_NR = d_output_NO @ part.b.to(d_output_NO.dtype)
            addmm_fp32_(d_b_OR, d_output_NO.t(), projected_NR, scale=part.scale)
            addmm_fp32_(d_a_RI, d_projected_NR.t(), aligned_rows(input_TI, part.rows), scale=part.scale)
            if d_input_TI is not None:
                addmm_rows_(d_input_TI, part.rows, d_projected_NR, part.a.to(d_output_NO.dtype), scale=part.scale)
        return d_input_TI, None, None, None


class _Grouped(torch.autograd.Function):
    """The same for a group of adapters."""

    @staticmethod
    def forward(
        ctx: Any, input_TI: Tensor, anchor: Tensor, products: FrozenProducts, group: AdapterGroup, name: str
    ) -> Tensor:
        a_SRI, b_SOR = group.factors[name]
        projected_TR = group.product(input_TI, a_SRI.transpose(1, 2))
        output_TO = products.forward(input_TI)
        output_TO.add_(group.product(projected_TR, b_SOR.transpose(1, 2)), alpha=group.scale)
        ctx.save_for_backward(input_TI, projected_TR)
        ctx.products, ctx.group, ctx.name = products, group, name
        return output_TO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (d_output_TO,) = gradients
        d_output_TO = d_output_TO.contiguous()
        input_TI, projected_TR = ctx.saved_tensors
        a_SRI, b_SOR = ctx.group.factors[ctx.name]
        d_projected_TR = ctx.group.product(d_output_TO, b_SOR)
        if ctx.group.gradients is not None:
            d_a_SRI, d_b_SOR = ctx.group.gradients[ctx.name]
            d_a_SRI.copy_(ctx.group.outer(d_projected_TR, input_TI))
            d_b_SOR.copy_(ctx.group.outer(d_output_TO, projected_TR))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        d_input_TI = ctx.products.backward(d_output_TO)
        d_input_TI.add_(ctx.group.product(d_projected_TR, a_SRI), alpha=ctx.group.scale)
        return d_input_TI, None, None, None, None
