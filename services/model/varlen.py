"""One face for torch's variable-length flash attention, whose signature differs between torch releases.

CUDA only, bfloat16 or float16. torch 2.13 takes grouped key and value heads as they are; a release without `enable_gqa`
gets them repeated.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_TAKES_GROUPED_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters
_CAUSAL = (-1, 0)


def varlen_causal(
    query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, boundaries: Tensor, longest: int, *, scale: float | None
) -> Tensor:
    """Causal attention of each packed sequence to itself.

    Args:
        query_THD: [T, heads, head_dim].
        key_TGD: [T, key heads, head_dim]; heads is a multiple of key heads.
        value_TGD: like key_TGD.
        boundaries: int32 [sequences + 1], cumulative lengths from 0.
        longest: length of the longest sequence.
        scale: factor on the scores; None for 1 / sqrt(head_dim).

    Returns:
        [T, heads, head_dim].
    """
    options: dict[str, Any] = {"scale": scale, "window_size": _CAUSAL}
    group = query_THD.shape[1] // key_TGD.shape[1]
    if _TAKES_GROUPED_HEADS:
        options["enable_gqa"] = group > 1
    elif group > 1:
        key_TGD, value_TGD = (tensor.repeat_interleave(group, dim=1) for tensor in (key_TGD, value_TGD))
    attended = varlen_attn(query_THD, key_TGD, value_TGD, boundaries, boundaries, longest, longest, **options)
    return cast(Tensor, attended)
