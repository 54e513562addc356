"""Adapters that others have trained: files in PEFT's format, checked before anything is taken from them.

Everything that would be computed differently here is refused by name: another base model, rank or module, a shape that
does not fit, a number that is not finite. bfloat16 and float16 are taken and become float32, which is exact. PEFT adds
the unembedding's and the embedding's own weights to an adapter of the unembedding; those are taken if they are the base
model's, and refused if they were changed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from services.core.errors import DataLossError, InvalidArgumentError
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_files import fill, named_matrices, read_config, read_tensors
from services.model.adapters import AdapterLayout, AdapterWeights
from services.model.base import BaseModel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PREFIX = "base_model.model."


def import_adapter(
    config_path: Path, weights_path: Path, base: BaseModel, *, rename_base_model: bool
) -> AdapterWeights:
    """Reads an adapter for a base model and places it on the base model's device.

    Args:
        config_path: adapter_config.json.
        weights_path: adapter_model.safetensors.
        base: the base model.
        rename_base_model: take it though its configuration names another base model.

    Raises:
        InvalidArgumentError: it is damaged, or does not fit this base model; names what.
    """
    try:
        config = read_config(config_path, None if rename_base_model else base.name, label=CONFIG_FILE)
        tensors = read_tensors(weights_path, label=WEIGHTS_FILE)
    except (DataLossError, RecursionError) as error:
        raise InvalidArgumentError(str(error) or f"{CONFIG_FILE} is nested too deeply", reason="BAD_ADAPTER") from error
    layout = AdapterLayout.of(base, config)
    weights = AdapterWeights(config, layout, torch.empty(layout.numel))
    own = named_matrices(weights).keys()
    tensors = {name: tensor for name, tensor in tensors.items() if name in own or not _is_the_bases(name, tensor, base)}
    for name, tensor in tensors.items():
        _check_numbers(name, tensor)
    fill(weights, tensors, WEIGHTS_FILE)
    return AdapterWeights(config, layout, weights.flat.to(base.device))


def _is_the_bases(name: str, tensor: Tensor, base: BaseModel) -> bool:
    """Whether a tensor is a weight of the base model itself, the same as far as the narrower of the two can tell.

    Raises:
        InvalidArgumentError: it is one that was changed.
    """
    own = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
    weight = base.module.state_dict(keep_vars=True).get(own)
    if weight is None or not name.startswith(_PREFIX):
        return False
    dtype = min(weight.dtype, tensor.dtype, key=lambda dtype: dtype.itemsize)
    if weight.shape != tensor.shape or not torch.equal(weight.detach().cpu().to(dtype), tensor.to(dtype)):
        message = f"{WEIGHTS_FILE}: {name} is not the base model's; adapters that change whole weights are not taken"
        raise InvalidArgumentError(message, reason="BAD_ADAPTER")
    return True


def _check_numbers(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        given = str(tensor.dtype).removeprefix("torch.")
        raise InvalidArgumentError(f"{WEIGHTS_FILE}: {name} is {given}; allowed are {allowed}", reason="BAD_ADAPTER")
    if not torch.isfinite(tensor).all():
        message = f"{WEIGHTS_FILE}: {name} has NaN or infinite values"
        raise InvalidArgumentError(message, reason="BAD_ADAPTER")
