"""Import of adapters that were trained elsewhere: files in PEFT's format, checked before they are used.

An adapter that would compute something else here is refused by name: another base model, rank or module, a shape that
does not fit, a number that is not finite. bfloat16 and float16 are accepted and become float32, which is exact. PEFT
saves the weights of unembedding and embedding with an adapter of the unembedding; they are accepted, and ignored, if
they are the base model's own, and refused if they were changed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from services.core.errors import DataLossError, InvalidArgumentError, broken_rule
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
        rename_base_model: accept an adapter whose configuration names another base model.

    Raises:
        InvalidArgumentError: it is damaged, or does not fit this base model; names the option or the tensor.
    """
    try:
        config = read_config(config_path, base, label=CONFIG_FILE, any_base_model=rename_base_model)
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
    """True if a tensor is a weight of the base model itself, equal to it in the narrower of the two dtypes.

    Raises:
        InvalidArgumentError: it has the name of such a weight and another content.
    """
    own = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
    weight = base.module.state_dict(keep_vars=True).get(own)
    if weight is None or not name.startswith(_PREFIX):
        return False
    dtype = min(weight.dtype, tensor.dtype, key=lambda dtype: dtype.itemsize)
    if weight.shape != tensor.shape or not torch.equal(weight.detach().cpu().to(dtype), tensor.to(dtype)):
        rule = "must be the base model's own weight, because adapters that change whole weights are not supported"
        message = f"{WEIGHTS_FILE}: {name} {rule}"
        raise InvalidArgumentError(message, reason="BAD_ADAPTER")
    return True


def _check_numbers(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        allowed, got = " or ".join(map(_dtype_name, DTYPES)), _dtype_name(tensor.dtype)
        raise InvalidArgumentError(f"{WEIGHTS_FILE}: {name} {broken_rule(allowed, got)}", reason="BAD_ADAPTER")
    if not torch.isfinite(tensor).all():
        message = f"{WEIGHTS_FILE}: {name} {broken_rule('finite', 'NaN or infinite values')}"
        raise InvalidArgumentError(message, reason="BAD_ADAPTER")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
