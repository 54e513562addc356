"""Adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors.

Any tool that reads PEFT adapters reads these. They hold LoRA matrices in float32 and nothing else: no weight of the
base model, also when the unembedding is adapted. What is not supported (DoRA, ranks that differ by layer) is refused
 by the option's name, never approximated.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.core.checkpoints import MANIFEST_FILE
from services.core.errors import DataLossError, InvalidArgumentError
from services.core.linears import ADAPTABLE_LINEARS
from services.model.adapters import AdapterConfig, AdapterLayout, AdapterWeights
from services.model.base import BaseModel
from services.model.manifest import Manifest

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Options that do not change what the adapter computes, or that are read on their own.
_FREE_OPTIONS = frozenset(
    {"r", "lora_alpha", "lora_dropout", "target_modules", "base_model_name_or_path", "revision", "inference_mode"}
    | {"auto_mapping", "peft_version", "init_lora_weights", "task_type", "loftq_config", "runtime_config"}
)


def write_adapter(directory: Path, weights: AdapterWeights, base: BaseModel) -> None:
    """Writes an adapter's two files into an existing directory."""
    weights.config.to_peft(base.name).save_pretrained(str(directory))
    tensors = {name: matrix.cpu() for name, matrix in named_matrices(weights).items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def read_adapter(directory: Path, base: BaseModel) -> AdapterWeights:
    """Reads an adapter for a base model and places it on the base model's device.

    Where the directory has a checkpoint.json, both files are verified against it first.

    Raises:
        DataLossError: a file is missing, truncated or corrupted.
        InvalidArgumentError: the adapter is for another base model, or of a kind that is not supported.
    """
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if (directory / MANIFEST_FILE).exists():
        manifest = Manifest.read(directory)
        config_path, weights_path = (manifest.verified(directory, path.name) for path in (config_path, weights_path))
    config = _read_config(config_path, base)
    layout = AdapterLayout.of(base, config)
    weights = AdapterWeights(config, layout, torch.empty(layout.numel))
    fill(weights, read_tensors(weights_path), weights_path)
    return AdapterWeights(config, layout, weights.flat.to(base.device))


def named_matrices(weights: AdapterWeights) -> dict[str, Tensor]:
    """Views of the matrices by their names in PEFT's files."""
    return {
        f"base_model.model.{name}.{part}.weight": matrix
        for name, pair in weights.linears.items()
        for part, matrix in zip(("lora_A", "lora_B"), pair, strict=True)
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        DataLossError: the file is missing or cannot be parsed.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataLossError(f"{path} is missing or corrupted: {error}") from error


def fill(weights: AdapterWeights, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies tensors named as in PEFT's files into an adapter's buffer.

    Raises:
        InvalidArgumentError: names or shapes are not exactly the adapter's.
    """
    matrices = named_matrices(weights)
    if different := sorted(matrices.keys() ^ tensors.keys()):
        word = "lacks" if different[0] in matrices else "has the unexpected"
        raise InvalidArgumentError(f"{path} {word} tensor {different[0]} ({len(different)} such differences in all)")
    for name, matrix in matrices.items():
        shape, needed = tuple(tensors[name].shape), tuple(matrix.shape)
        if shape != needed:
            raise InvalidArgumentError(f"{path}: {name} has shape {shape}; the base model needs {needed}")
        matrix.copy_(tensors[name])


def _read_config(path: Path, base: BaseModel) -> AdapterConfig:
    try:
        content = json.loads(path.read_bytes())
        targets = frozenset(content["target_modules"])
        trained_on = content["base_model_name_or_path"]
        rank, alpha, rslora = int(content["r"]), int(content["lora_alpha"]), bool(content.get("use_rslora"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataLossError(f"{path} is missing or not a PEFT configuration: {error}") from error
    if trained_on != base.name:
        raise InvalidArgumentError(f"{path}: the adapter is for base model {trained_on!r}, not for {base.name!r}")
    if not targets or not targets.issubset(ADAPTABLE_LINEARS):
        allowed = ", ".join(ADAPTABLE_LINEARS)
        raise InvalidArgumentError(f"{path}: target_modules is {sorted(targets)}; allowed are {allowed}")
    config = AdapterConfig(rank, alpha, use_rslora=rslora, target_modules=tuple(sorted(targets)))
    ours: dict[str, Any] = dataclasses.asdict(config.to_peft(base.name))
    for option, value in content.items():
        if option not in _FREE_OPTIONS and value and value != ours.get(option):
            raise InvalidArgumentError(f"{path}: {option} is {value!r}, which is not supported")
    return config
