"""Operations whose rows do not depend on the rows beside them: the same bits alone or batched.

Usual matrix kernels choose their way by the number of rows, and elementwise ones compute the remainder of a vector by
another formula. Products with a frozen weight therefore go through oneDNN's packed layout, in which a row's result is
the same as long as there are two rows; a row that is alone is doubled. Those operations are private to torch, so `pack`
tries them and says when they are not there. float32 on a CPU only.

N rows, I and O features of a linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.core.errors import FailedPreconditionError

# What the packed layout is tuned for; any number of rows gives the same result.
_ROWS_HINT = 32

_ALIGNMENT = 64

_TRIED_ROWS = 48
_TRIED_RANGES = ((0, 1), (3, 2), (7, 5), (11, 17), (13, 32))

Product = Callable[[Tensor], Tensor]
"""[N, I] to [N, O]."""


@dataclass(frozen=True)
class FrozenProducts:
    """The two products with a frozen weight."""

    forward: Product
    """x W^T + b."""

    backward: Product
    """dy W: from the gradient of the output to that of the input."""

    packed: bool


def frozen_products(linear: nn.Linear) -> FrozenProducts:
    """The products of a linear whose weight never changes; packed where that can be had."""
    weight_OI, bias_O = linear.weight, linear.bias
    try:
        return FrozenProducts(pack(weight_OI, bias_O), pack(weight_OI.t()), packed=True)
    except FailedPreconditionError:
        return FrozenProducts(lambda x: F.linear(x, weight_OI, bias_O), lambda dy: dy @ weight_OI, packed=False)


def is_rowwise(linear: nn.Linear, products: FrozenProducts) -> bool:
    """True if rows of both products have the same bits alone or batched, tried with a few."""
    return products.packed and all(
        _keeps_bits(product, features, linear.weight)
        for product, features in ((products.forward, linear.in_features), (products.backward, linear.out_features))
    )


def _keeps_bits(product: Product, features: int, like: Tensor) -> bool:
    generator = torch.Generator(like.device).manual_seed(features)
    rows_NI = torch.randn(_TRIED_ROWS, features, generator=generator, device=like.device, dtype=like.dtype)
    together = product(rows_NI)
    ranges = [slice(start, start + length) for start, length in _TRIED_RANGES]
    return all(torch.equal(product(rows_NI[rows]), together[rows]) for rows in ranges)


def pack(weight_OI: Tensor, bias_O: Tensor | None = None) -> Product:
    """x W^T + b, each row bitwise independent of the others.

    Raises:
        FailedPreconditionError: this torch cannot do that.
    """
    try:
        if weight_OI.device.type != "cpu" or weight_OI.dtype != torch.float32:
            raise RuntimeError(f"the weight is {weight_OI.dtype} on {weight_OI.device}")
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), _ROWS_HINT)
        pointwise = torch.ops.mkldnn._linear_pointwise
    except (AttributeError, RuntimeError) as error:
        message = "the deterministic mode needs float32 on a CPU and a torch with oneDNN's packed linears"
        raise FailedPreconditionError(message, reason="NOT_DETERMINISTIC") from error

    def product(input_NI: Tensor) -> Tensor:
        rows_NI = input_NI.expand(2, -1) if len(input_NI) == 1 else input_NI
        output_NO: Tensor = pointwise(rows_NI.contiguous(), packed, bias_O, "none", [], "")
        return output_NO[: len(input_NI)]

    return product


class RowwiseSiLU(nn.Module):
    """x sigmoid(x) from operations that give an element the same bits wherever it stands."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape to the same."""
        return cast(Tensor, _SiLU.apply(input))  # type: ignore[no-untyped-call]


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        sigmoid = input.neg().exp_().add_(1).reciprocal_()
        output = input * sigmoid
        ctx.save_for_backward(sigmoid, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """With s the sigmoid and y the output: dy (s (1 - y) + y)."""
        (d_output,) = gradients
        sigmoid: Tensor
        output: Tensor
        sigmoid, output = ctx.saved_tensors
        return (1 - output).mul_(sigmoid).add_(output).mul_(d_output)


def aligned_rows(matrix: Tensor, rows: slice) -> Tensor:
    """Rows of a matrix, copied where they do not begin on a cache line: matrix kernels' last bits depend on that."""
    part = matrix[rows]
    return part if part.data_ptr() % _ALIGNMENT == 0 else part.clone()


def addmm_rows_(matrix: Tensor, rows: slice, left: Tensor, right: Tensor, *, scale: float) -> None:
    """Adds scale * (left @ right) to rows of a matrix in place, to the same bits wherever they begin."""
    part = matrix[rows]
    if part.data_ptr() % _ALIGNMENT == 0:
        part.addmm_(left, right, alpha=scale)
    else:
        matrix[rows] = part.clone().addmm_(left, right, alpha=scale)
