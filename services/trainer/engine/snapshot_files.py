"""A snapshot of a run as files: its four vectors as they lie in memory, and checkpoint.json with their SHA-256.

    state.safetensors    weights, gradient, moments (those that are not all zero) and step
    checkpoint.json      whose it is, the adapter's shape, the last operation whose effect it has

It is all that a run is: training draws no random numbers after an adapter's initialisation. Flat vectors are written
without a copy and without their matrices' names, so a snapshot costs little more than its bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from services.core.errors import DataLossError
from services.core.storage.checkpoint_store import MANIFEST_FILE
from services.model.adapter_files import read_tensors, write_tensors
from services.model.adapters import AdapterLayout, AdapterWeights
from services.model.base import BaseModel
from services.model.manifest import Manifest
from services.trainer.engine.run_state import RunState

STATE_FILE = "state.safetensors"
_STEP = "step"
_WEIGHTS = "weights"


def write_snapshot(directory: Path, state: RunState, manifest: Manifest) -> None:
    """Fills an empty directory with the snapshot of a state in the CPU's memory."""
    vectors = {name: vector for name, vector in state.optimizer_vectors().items() if vector.any()}
    tensors = {_WEIGHTS: state.weights.flat, **vectors, _STEP: torch.tensor(state.step)}
    write_tensors(tensors, directory / STATE_FILE)
    manifest.write(directory)


def read_snapshot(directory: Path, base: BaseModel) -> RunState:
    """The state that a snapshot holds, in the CPU's memory.

    Raises:
        DataLossError: a file is missing or altered, or is not of this base model; names it.
        BaseModelChangedError: it was made with another base model of the same name.
    """
    manifest = Manifest.read(directory)
    base.fingerprint.check(manifest.base_fingerprint, manifest.title)
    path = manifest.verified(directory, STATE_FILE)
    tensors = read_tensors(path)
    layout = AdapterLayout.of(base, manifest.adapter)
    if not base.is_called(manifest.base_model) or tensors[_WEIGHTS].shape != (layout.numel,):
        raise DataLossError(f"{directory / MANIFEST_FILE}: not a snapshot of a run on this base model {base.name!r}")
    state = RunState(AdapterWeights(manifest.adapter, layout, tensors[_WEIGHTS]))
    state.step = int(tensors[_STEP])
    for name, vector in state.optimizer_vectors().items():
        if name in tensors:
            vector.copy_(tensors[name])
    return state
