"""The only file of the client that imports torch: tensors in and out, and the user's own loss.

Imported when it is called for, never at import of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

D = TypeVar("D")

CustomLoss = Callable[[list[D], list[torch.Tensor]], tuple[torch.Tensor, Mapping[str, Any]]]


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor."""
    return isinstance(value, torch.Tensor)


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's values as an array on the host; bfloat16 and float16 become float32."""
    values = tensor.detach().cpu()
    if values.layout is not torch.strided:
        raise ValueError(f"layout: must be torch.strided (got {values.layout}); call to_dense() first")
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    array: npt.NDArray[Any] = values.numpy()
    return array


def from_numpy(array: npt.NDArray[Any]) -> torch.Tensor:
    """A tensor on the CPU that shares the array's memory."""
    return torch.from_numpy(array)


def differentiate(
    data: Sequence[D], logprobs: Sequence[npt.NDArray[np.float32]], loss_fn: CustomLoss[D]
) -> tuple[list[npt.NDArray[np.float32]], dict[str, float]]:
    """Calls the user's loss on the log-probabilities of every datum, and differentiates it.

    Args:
        data: the examples, as the user gave them.
        logprobs: of each datum's targets, of target_tokens' shape.
        loss_fn: `(data, logprobs) -> (loss, metrics)`, loss a scalar tensor.

    Returns:
        For each datum the weights that make cross-entropy's gradient the loss's, w = -dC/dlogprob, since cross-entropy
        is -sum(w * logprob); and the metrics of `loss_fn` with "loss:sum" = C.

    Raises:
        TypeError, ValueError: what `loss_fn` returned is not a scalar loss with metrics, or a gradient is not finite.
    """
    leaves = [torch.from_numpy(np.array(values, dtype=np.float32)).requires_grad_() for values in logprobs]
    with torch.enable_grad():
        returned = loss_fn(list(data), leaves)
        loss, metrics = _checked(returned)
        loss.backward()  # type: ignore[no-untyped-call]
    weights = [_weights(leaf, index) for index, leaf in enumerate(leaves)]
    numbers = {name: float(value) for name, value in metrics.items()}
    return weights, {**numbers, "loss:sum": float(loss.detach())}


def _checked(returned: object) -> tuple[torch.Tensor, Mapping[str, Any]]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError("a custom loss must return (loss, metrics)")
    loss, metrics = returned
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise TypeError("the loss that a custom loss returns must be a torch tensor of one element")
    if not isinstance(metrics, Mapping):
        raise TypeError("the metrics that a custom loss returns must be a dict of numbers")
    if not loss.requires_grad:
        raise ValueError("the loss that a custom loss returns does not depend on the logprobs: it has no gradient")
    if not math.isfinite(loss.item()):
        raise ValueError(f"the loss that a custom loss returns is {loss.item()}")
    return loss, metrics


def _weights(leaf: torch.Tensor, index: int) -> npt.NDArray[np.float32]:
    if leaf.grad is None:  # the loss does not look at this datum
        return np.zeros(tuple(leaf.shape), dtype=np.float32)
    if not bool(torch.isfinite(leaf.grad).all()):
        raise ValueError(f"the custom loss has a gradient that is not finite with respect to logprobs[{index}]")
    weights: npt.NDArray[np.float32] = (-leaf.grad).numpy()
    return weights
