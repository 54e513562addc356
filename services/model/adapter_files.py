"""Adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors.

Any tool that reads PEFT adapters reads these. They hold LoRA matrices in float32 and nothing else: no weight of the
base model, also when the unembedding is adapted. Options that are not supported (DoRA, ranks that differ by layer) are
refused by name, never approximated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.core.errors import DataLossError, InvalidArgumentError, broken_rule, quoted
from services.core.storage.checkpoint_store import MANIFEST_FILE
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterLayout, AdapterWeights, peft_config
from services.model.base import BaseModel
from services.model.manifest import Manifest

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")

# Options that do not change what the adapter computes, or that are read on their own.
_FREE_OPTIONS = frozenset(
    {"r", "lora_alpha", "lora_dropout", "target_modules", "base_model_name_or_path", "revision", "inference_mode"}
    | {"auto_mapping", "peft_version", "init_lora_weights", "task_type", "loftq_config", "runtime_config"}
)


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
    config = read_config(config_path, base, label=str(config_path))
    layout = AdapterLayout.of(base, config)
    weights = AdapterWeights(config, layout, torch.empty(layout.numel))
    fill(weights, read_tensors(weights_path), str(weights_path))
    return weights


def named_matrices(weights: AdapterWeights) -> dict[str, Tensor]:
    """Views of the matrices by their names in PEFT's files."""
    return {
        name: matrix
        for linear, pair in weights.linears.items()
        for name, matrix in zip(_names(linear), pair, strict=True)
    }


def matrix_shapes(layout: AdapterLayout) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices by their names in PEFT's files."""
    return {
        name: shape
        for linear, (inputs, outputs) in layout.linears.items()
        for name, shape in zip(_names(linear), ((layout.rank, inputs), (outputs, layout.rank)), strict=True)
    }


def _names(linear: str) -> tuple[str, str]:
    """The names of A and B in PEFT's files."""
    return f"base_model.model.{linear}.lora_A.weight", f"base_model.model.{linear}.lora_B.weight"


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


def read_config(path: Path, base: BaseModel, *, label: str, any_base_model: bool = False) -> AdapterConfig:
    """The adapter that an adapter_config.json describes.

    Args:
        path: the file.
        base: the base model.
        label: what errors call the file.
        any_base_model: take it also where it names another base model.

    Raises:
        DataLossError: it is missing or not a PEFT configuration.
        InvalidArgumentError: it is for another base model, or of a kind that is not supported.
    """
    try:
        content = json.loads(path.read_bytes())
        given = content["target_modules"]
        targets = frozenset([given] if isinstance(given, str) else given)
        trained_on = content["base_model_name_or_path"]
        rank, alpha, rslora = int(content["r"]), int(content["lora_alpha"]), bool(content.get("use_rslora"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataLossError(f"{label} is missing or not a PEFT configuration: {error}") from error
    if not any_base_model and trained_on != base.name:
        raise _refusal(label, "base_model_name_or_path", quoted(base.name), trained_on)
    adaptable = base.family.last_names()
    if not targets or not targets.issubset(adaptable):
        raise _refusal(label, "target_modules", f"some of {', '.join(adaptable)}", sorted(map(str, targets)))
    for option, number in (("r", rank), ("lora_alpha", alpha)):
        if number != content[option] or number < 1:
            raise _refusal(label, option, "a whole number of at least 1", content[option])
    config = AdapterConfig(rank, alpha, use_rslora=rslora, target_modules=tuple(sorted(targets)))
    ours: dict[str, Any] = dataclasses.asdict(peft_config(config, trained_on, base.family))
    for option, value in content.items():
        if option not in _FREE_OPTIONS and value and value != ours.get(option):
            rule = quoted(ours[option]) if option in ours else "absent"
            raise _refusal(label, option, f"{rule}, because nothing else is supported", value)
    return config


def _refusal(label: str, option: str, rule: str, got: object) -> InvalidArgumentError:
    return InvalidArgumentError(f"{label}: {option} {broken_rule(rule, quoted(got))}")
