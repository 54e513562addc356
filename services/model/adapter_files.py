"""Adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors.

Any tool that reads PEFT adapters reads these. They hold LoRA matrices in float32 and nothing else: no weight of the
base model, also when the unembedding is adapted. Options that are not supported (services.model.peft_options) are
refused by name, never approximated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.core.errors import DataLossError, InvalidArgumentError
from services.core.storage.checkpoint_store import MANIFEST_FILE
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapters import AdapterLayout, AdapterWeights, peft_config
from services.model.base import BaseModel
from services.model.manifest import Manifest
from services.model.peft_description import describe
from services.model.tensor_names import matrix_names

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def write_adapter(directory: Path, weights: AdapterWeights, base: BaseModel) -> None:
    """Writes an adapter's two files into an existing directory; errors as `write_tensors`."""
    peft_config(weights.config, base.name, base.family).save_pretrained(str(directory))
    write_tensors({name: matrix.cpu() for name, matrix in named_matrices(weights).items()}, directory / WEIGHTS_FILE)


def read_adapter(directory: Path, base: BaseModel) -> AdapterWeights:
    """Reads an adapter for a base model into the CPU's memory.

    Where the directory has a checkpoint.json, both files are verified against it first.

    Raises:
        DataLossError: a file is missing, truncated or corrupted.
        InvalidArgumentError: the adapter is for another base model, or of a kind that is not supported.
        BaseModelChangedError: it was made with another base model of the same name.
    """
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if (directory / MANIFEST_FILE).exists():
        manifest = Manifest.read(directory)
        base.fingerprint.check(manifest.base_fingerprint, manifest.title)
        config_path, weights_path = (manifest.verified(directory, path.name) for path in (config_path, weights_path))
    tensors = read_tensors(weights_path)
    names = {name: name for name in tensors}
    config = describe(config_path, names, base, label=str(config_path))
    layout = AdapterLayout.of(base, config)
    weights = AdapterWeights(config, layout, torch.empty(layout.numel))
    fill(weights, tensors, str(weights_path))
    return weights


def named_matrices(weights: AdapterWeights) -> dict[str, Tensor]:
    """Views of the matrices by their names in PEFT's files."""
    return {
        name: matrix
        for linear, pair in weights.linears.items()
        for name, matrix in zip(matrix_names(linear), pair, strict=True)
    }


def matrix_shapes(layout: AdapterLayout) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices by their names in PEFT's files."""
    return {
        name: shape
        for linear, (rank, inputs, outputs) in layout.linears.items()
        for name, shape in zip(matrix_names(linear), ((rank, inputs), (outputs, rank)), strict=True)
    }


def read_tensors(path: Path, *, label: str = "") -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; errors call it `label`, or else by its path.

    Raises:
        DataLossError: the file is missing or cannot be parsed.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataLossError(f"{label or path} is missing or corrupted: {error}") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # safetensors hides the system's error in its text, and callers know a full disk by its number.
        number = _SYSTEM_ERROR.search(str(error))
        if number is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def fill(weights: AdapterWeights, tensors: Mapping[str, Tensor], label: str) -> None:
    """Copies tensors named as in PEFT's files into an adapter's buffer; errors call their file `label`.

    Raises:
        InvalidArgumentError: names or shapes are not exactly the adapter's.
    """
    matrices = named_matrices(weights)
    if different := sorted(matrices.keys() ^ tensors.keys()):
        word = "lacks" if different[0] in matrices else "has the unexpected"
        raise InvalidArgumentError(f"{label} {word} tensor {different[0]} ({len(different)} such differences in all)")
    for name, matrix in matrices.items():
        shape, needed = tuple(tensors[name].shape), tuple(matrix.shape)
        if shape != needed:
            raise InvalidArgumentError(f"{label}: {name} must have shape {needed} for this base model (got {shape})")
        matrix.copy_(tensors[name])
