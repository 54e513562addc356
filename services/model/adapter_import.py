"""Import of adapters that were trained elsewhere: files in PEFT's format, checked before they are used.

An adapter that would compute something else here is refused by name: another base model or rank, a linear that is not
adapted here, a shape that does not fit, a number that is not finite. bfloat16 and float16 are accepted and become
float32, which is exact. PEFT saves the weights of unembedding and embedding with an adapter of the unembedding; they
are accepted, and ignored, if they are the base model's own, and refused if they were changed.

Names, dtypes and shapes are checked before any content is read, and a header is parsed only if it is no longer than an
adapter of this base model can need. Nothing here touches the device but to read a weight of the base model, so all of
it may run beside the thread that trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from services.core.errors import DataLossError, InvalidArgumentError, broken_rule, quoted
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import matrix_shapes, named_matrices
from services.model.adapters import AdapterLayout, AdapterWeights
from services.model.base import BaseModel
from services.model.peft_description import describe
from services.model.tensor_header import TensorInfo, read_header
from services.model.tensor_names import PREFIX, names_here

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DTYPE_WORDS = {"I": "int", "U": "uint", "F": "float", "BF": "bfloat"}

_HEADER_BYTES_PER_TENSOR = 512
"""A name of up to some hundred characters, dtype, shape and offsets."""

_HEADER_BYTES_OF_METADATA = 1 << 18


def check_adapter(config_path: Path, weights_path: Path, base: BaseModel, *, rename_base_model: bool) -> AdapterConfig:
    """The adapter that two files describe, as far as its configuration and the weights' header tell.

    Args:
        config_path: adapter_config.json.
        weights_path: adapter_model.safetensors.
        base: the base model.
        rename_base_model: accept an adapter whose configuration names another base model.

    Raises:
        InvalidArgumentError: it is damaged, or does not fit this base model; names the option or the tensor.
    """
    try:
        header = read_header(weights_path, max_header_bytes(base), WEIGHTS_FILE)
        names = names_here(header, base.family)
        config = describe(config_path, names, base, label=CONFIG_FILE, any_base_model=rename_base_model)
    except DataLossError as error:
        raise _refusal(str(error)) from error
    own = matrix_shapes(AdapterLayout.of(base, config))
    if missing := [name for name in own if name not in names.values()]:
        raise _refusal(f"{WEIGHTS_FILE} lacks tensor {missing[0]} ({len(missing)} missing in all)")
    bases = base.module.state_dict(keep_vars=True)
    for name, tensor in header.items():
        here = names[name]
        _check_tensor(name, tensor, own[here] if here in own else _shape_of(_bases_weight(here, bases)))
    return config


def import_adapter(
    config_path: Path, weights_path: Path, base: BaseModel, *, rename_base_model: bool
) -> AdapterWeights:
    """Reads an adapter for a base model into the CPU's memory; arguments and errors are those of `check_adapter`."""
    config = check_adapter(config_path, weights_path, base, rename_base_model=rename_base_model)
    layout = AdapterLayout.of(base, config)
    weights = AdapterWeights(config, layout, torch.empty(layout.numel))
    matrices, bases = named_matrices(weights), base.module.state_dict(keep_vars=True)
    with safe_open(weights_path, "pt") as file:
        for name, here in names_here(file.keys(), base.family).items():
            tensor = file.get_tensor(name)
            if here not in matrices:
                _check_is_the_bases(name, tensor, _bases_weight(here, bases))
                continue
            if not torch.isfinite(tensor).all():
                raise _refusal(f"{WEIGHTS_FILE}: {name} {broken_rule('finite', 'NaN or infinite values')}")
            matrices[here].copy_(tensor)
    return weights


def max_header_bytes(base: BaseModel) -> int:
    """Longest header of an adapter of a base model: both matrices of every linear, and some metadata."""
    return 2 * len(base.adaptable_linears()) * _HEADER_BYTES_PER_TENSOR + _HEADER_BYTES_OF_METADATA


def _check_tensor(name: str, tensor: TensorInfo, shape: tuple[int, ...] | None) -> None:
    if shape is None:
        raise _refusal(f"{WEIGHTS_FILE} has the unexpected tensor {quoted(name)}")
    if tensor.dtype not in _DTYPES:
        letters = tensor.dtype.rstrip("0123456789")
        got = _DTYPE_WORDS.get(letters, letters) + tensor.dtype.removeprefix(letters)
        raise _refusal(f"{WEIGHTS_FILE}: {name} {broken_rule(' or '.join(_DTYPES.values()), got)}")
    if tensor.shape != shape:
        message = f"{WEIGHTS_FILE}: {name} must have shape {shape} for this base model (got {tensor.shape})"
        raise _refusal(message)


def _bases_weight(name: str, bases: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of the base model that PEFT saves under a name."""
    return bases.get(name.removeprefix(PREFIX).replace(".base_layer.", ".")) if name.startswith(PREFIX) else None


def _shape_of(weight: Tensor | None) -> tuple[int, ...] | None:
    return None if weight is None else tuple(weight.shape)


def _check_is_the_bases(name: str, tensor: Tensor, weight: Tensor | None) -> None:
    """Refuses a weight of the base model that is not equal to its own in the narrower of the two dtypes."""
    dtype = tensor.dtype if weight is None else min(weight.dtype, tensor.dtype, key=lambda dtype: dtype.itemsize)
    if weight is None or not torch.equal(weight.detach().cpu().to(dtype), tensor.to(dtype)):
        rule = "must be the base model's own weight, because adapters that change whole weights are not supported"
        raise _refusal(f"{WEIGHTS_FILE}: {name} {rule}")


def _refusal(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="BAD_ADAPTER")
