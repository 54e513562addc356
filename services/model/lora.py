"""The multi-adapter linear: one packed row through the frozen weight, and each range of it through its own adapter.

`install_lora` puts it in place of every adaptable linear once. Inside `with context.segments([...])` a linear computes
x W + s (x A^T) B^T per contiguous token range; outside it computes x W alone. Ranges never mix, forward or backward, so
what one adapter holds (a NaN, say) stays in its own rows. Gradients of A and B go straight into the segment's buffer.

T tokens of the row, N tokens of a segment, I and O the linear's features, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.precision import addmm_fp32_


@dataclass(frozen=True)
class Segment:
    """A contiguous token range of the packed row and the adapter that it goes through."""

    start: int
    end: int

    adapter: AdapterWeights | None
    """None: the base model alone."""

    gradient: AdapterWeights | None = None
    """Where the adapter's gradient is added, a buffer of its layout; None: nothing flows back through this range."""


class LoraContext:
    """Which segments the installed linears see.

    A plain attribute, not a context variable: recomputation during a backward pass may run on a thread of autograd's.
    """

    def __init__(self, device: torch.device) -> None:
        self.current: tuple[Segment, ...] = ()
        # The embedding is frozen, so nothing that enters the first layer requires a gradient; this makes autograd
        # record the adapters there all the same.
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    @contextmanager
    def segments(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Routes through the given segments inside the block; they are ascending and do not overlap."""
        outer, self.current = self.current, tuple(segments)
        try:
            yield
        finally:
            self.current = outer


class MultiLoraLinear(nn.Linear):
    """A frozen linear that adds each segment's adapter. Shares the weight of the linear that it replaces."""

    def __init__(self, linear: nn.Linear, name: str, context: LoraContext) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._name = name
        self._context = context

    def forward(self, input: Tensor) -> Tensor:
        """[..., T, I] to [..., T, O]; leading dimensions are 1 while segments are set."""
        output = F.linear(input, self.weight, self.bias)
        parts = [part for segment in self._context.current if (part := _part(segment, self._name))]
        if not parts:
            return output
        if torch.is_grad_enabled() and any(part.gradient for part in parts):
            return cast(Tensor, _AddAdapters.apply(output, input, self._context.anchor, parts))  # type: ignore[no-untyped-call]
        _add_adapters_(output, input, parts)
        return output


def install_lora(base: BaseModel) -> LoraContext:
    """Puts the multi-adapter linear in place of every adaptable linear of a base model. Call it once."""
    context = LoraContext(base.device)
    for name, linear in base.adaptable_linears().items():
        base.module.set_submodule(name, MultiLoraLinear(linear, name, context))
    return context


@dataclass(frozen=True)
class _Part:
    """What a segment does to one linear."""

    rows: slice
    a: Tensor
    b: Tensor
    scale: float
    gradient: tuple[Tensor, Tensor] | None
    """Where the gradients of A [R, I] and B [O, R] are added."""


def _part(segment: Segment, name: str) -> _Part | None:
    """None where the segment leaves the linear as it is."""
    if segment.adapter is None or name not in segment.adapter.linears:
        return None
    gradient = segment.gradient.linears[name] if segment.gradient else None
    rows = slice(segment.start, segment.end)
    return _Part(rows, *segment.adapter.linears[name], segment.adapter.scale, gradient)


def _add_adapters_(output: Tensor, input: Tensor, parts: Sequence[_Part]) -> list[Tensor]:
    """Adds s (x A^T) B^T to each segment's rows in place; returns x A^T [N, R] of each."""
    input_TI, output_TO = input.reshape(-1, input.shape[-1]), output.view(-1, output.shape[-1])
    projected = []
    for part in parts:
        projected_NR = input_TI[part.rows] @ part.a.to(input.dtype).t()
        output_TO[part.rows].addmm_(projected_NR, part.b.to(input.dtype).t(), alpha=part.scale)
        projected.append(projected_NR)
    return projected


class _AddAdapters(torch.autograd.Function):
    """`_add_adapters_` with its gradient: to the input as usual, to A and B into the segments' buffers."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, input: Tensor, anchor: Tensor, parts: Sequence[_Part]) -> Tensor:
        ctx.save_for_backward(input, *_add_adapters_(output, input, parts))
        ctx.parts = parts
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (d_output,) = gradients
        input, *projected = ctx.saved_tensors
        d_input = torch.zeros_like(input) if ctx.needs_input_grad[1] else None
        d_output_TO, input_TI = d_output.reshape(-1, d_output.shape[-1]), input.reshape(-1, input.shape[-1])
        for part, projected_NR in zip(ctx.parts, projected, strict=True):
            if part.gradient is None:
                continue
            d_a_RI, d_b_OR = part.gradient
            d_projected_NR = d_output_TO[part.rows] @ part.b.to(d_output.dtype)
            addmm_fp32_(d_b_OR, d_output_TO[part.rows].t(), projected_NR, scale=part.scale)
            addmm_fp32_(d_a_RI, d_projected_NR.t(), input_TI[part.rows], scale=part.scale)
            if d_input is not None:
                d_input_TI = d_input.view(-1, input.shape[-1])
                d_input_TI[part.rows].addmm_(d_projected_NR, part.a.to(d_output.dtype), alpha=part.scale)
        return d_output, d_input, None, None
