"""Matrix products that accumulate into float32, whatever the inputs' dtype.

On a GPU bfloat16 inputs stay on the tensor cores and only the result is float32: rounding a logit near 20 to bfloat16
would cost up to 0.06 nats. On a CPU, where the base model is float32 by default, bfloat16 inputs are widened first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_fp32(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """left @ right as float32 [M, N]; both inputs share one dtype."""
    if left_MK.dtype == torch.float32:
        return left_MK @ right_KN
    if left_MK.is_cuda:
        return torch.mm(left_MK, right_KN, out_dtype=torch.float32)
    return left_MK.float() @ right_KN.float()


def addmm_fp32_(total_MN: Tensor, left_MK: Tensor, right_KN: Tensor, *, scale: float) -> None:
    """Adds scale * (left @ right) to a float32 total in place."""
    if left_MK.dtype == torch.float32:
        total_MN.addmm_(left_MK, right_KN, alpha=scale)
    else:
        total_MN.add_(matmul_fp32(left_MK, right_KN), alpha=scale)
