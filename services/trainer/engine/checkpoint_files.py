"""Training and sampler checkpoints as directories: PEFT's two files, the optimizer's, and checkpoint.json.

    adapter_config.json, adapter_model.safetensors    the adapter, readable by PEFT
    optimizer.safetensors                             moments, step and accumulated gradient; training checkpoints only
    checkpoint.json                                   what it is and the SHA-256 of the others

An external checkpoint has the adapter's two files as services.model.external_files writes them.

Reading verifies every file before using it. Continuing from a training checkpoint is bit-equal to never having stopped.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from services.core.errors import DataLossError, InvalidArgumentError
from services.model.adapter_files import (
    fill,
    named_matrices,
    read_adapter,
    read_tensors,
    write_adapter,
    write_tensors,
)
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.external_files import write_external
from services.model.manifest import Manifest
from services.trainer.engine.encryption import AgeEncryption
from services.trainer.engine.run_state import RunState

OPTIMIZER_FILE = "optimizer.safetensors"
_STEP = "step"


def write_checkpoint(
    directory: Path, state: RunState, base: BaseModel, manifest: Manifest, encryption: AgeEncryption | None = None
) -> None:
    """Fills an empty directory with a checkpoint of the manifest's kind; all but checkpoint.json may be encrypted."""
    if manifest.kind == "external":
        write_external(directory, state.weights, base)
    else:
        write_adapter(directory, state.weights, base)
    if manifest.kind == "training":
        tensors = {
            f"{part}.{name}": matrix.cpu()
            for part, vector in state.optimizer_vectors().items()
            for name, matrix in named_matrices(_shaped(vector, state)).items()
        }
        write_tensors({**tensors, _STEP: torch.tensor(state.step)}, directory / OPTIMIZER_FILE)
    if encryption is not None:
        encryption.encrypt(directory)
    manifest.write(directory)


def read_training_checkpoint(directory: Path, base: BaseModel) -> RunState:
    """The state that a training checkpoint holds, in the CPU's memory.

    Raises:
        DataLossError: a file is missing, truncated or corrupted; names it.
        InvalidArgumentError: it is a sampler checkpoint, or one of another base model.
        BaseModelChangedError: it was made with another base model of the same name.
    """
    manifest = Manifest.read(directory)
    if manifest.kind != "training":
        raise InvalidArgumentError.at("path", f"must be a training checkpoint (got a {manifest.kind} checkpoint)")
    weights = read_adapter(directory, base)
    if manifest.adapter.shape(base.family) != weights.config.shape(base.family):
        raise DataLossError(f"{directory}: checkpoint.json and adapter_config.json describe different adapters")
    state = RunState(AdapterWeights(manifest.adapter, weights.layout, weights.flat))
    path = manifest.verified(directory, OPTIMIZER_FILE)
    tensors = read_tensors(path)
    state.step = int(tensors.pop(_STEP))
    for part, vector in state.optimizer_vectors().items():
        prefix = f"{part}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        fill(_shaped(vector, state), own, str(path))
    return state


def _shaped(vector: Tensor, state: RunState) -> AdapterWeights:
    """A flat vector of the run seen as one matrix for each of the adapter's."""
    return AdapterWeights(state.config, state.weights.layout, vector)
