"""Full models from a base model and an adapter: W + scale B A in float32, as a Hugging Face model directory.

Written shard by shard, so that a merge takes the memory of one shard and not of a second model. The weights have the
base model's own dtype. Where the unembedding shares the embedding's weight and is adapted, they become two, and the
configuration says so (tie_word_embeddings).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from torch import Tensor

from services.model.adapter_files import read_adapter, write_tensors
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.tokenizer_files import write_files

SHARD_BYTES = 4 << 30
INDEX_FILE = "model.safetensors.index.json"


class BaseModelMerger:
    """Merges adapters into a base model that is being served."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base

    def merge(self, adapter: Path, directory: Path, *, check_wanted: Callable[[], None]) -> None:
        """See WeightMerger."""
        write_merged(directory, self._base, read_adapter(adapter, self._base), check_wanted=check_wanted)


def write_merged(
    directory: Path,
    base: BaseModel,
    adapter: AdapterWeights,
    *,
    check_wanted: Callable[[], None] = lambda: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Fills an empty directory with the merged model, its configuration and its tokenizer.

    Args:
        directory: where to.
        base: the base model; only read, from any thread.
        adapter: an adapter of it, on the CPU.
        check_wanted: called before each tensor; raises to end the merge.
        shard_bytes: largest file of weights, unless one tensor is larger.

    Raises:
        OSError: the disk does not take it.
    """
    weights, dtype = _own_weights(base, adapter), export_dtype(base)
    split = _split(weights, dtype, shard_bytes)
    for file, names in split.filename_to_tensors.items():
        shard = {}
        for name in names:
            check_wanted()
            shard[name] = _merged(name, weights[name], adapter, dtype)
        write_tensors(shard, directory / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    is_tied = base.is_tied and base.family.unembedding not in adapter.linears
    _write_configuration(directory, base, dtype, is_tied=is_tied)
    write_files(base.tokenizer_files.own, directory)


def export_dtype(base: BaseModel) -> torch.dtype:
    """The dtype that the base model is stored in, or is served in if that is narrower."""
    return base.stored_dtype if base.stored_dtype.itemsize <= base.dtype.itemsize else base.dtype


def _own_weights(base: BaseModel, adapter: AdapterWeights) -> dict[str, Tensor]:
    """The weights by name; of those that are one in memory only the first, unless an adapter tells them apart."""
    adapted = {f"{name}.weight" for name in adapter.linears}
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weight in base.module.state_dict().items():
        if weight.data_ptr() not in seen or name in adapted:
            weights[name] = weight
        seen.add(weight.data_ptr())
    return weights


def _split(weights: Mapping[str, Tensor], dtype: torch.dtype, shard_bytes: int) -> StateDictSplit:
    sizes = {
        name: torch.empty_like(weight, dtype=dtype if weight.is_floating_point() else None, device="meta")
        for name, weight in weights.items()
    }
    return split_torch_state_dict_into_shards(sizes, max_shard_size=shard_bytes)


def _merged(name: str, weight: Tensor, adapter: AdapterWeights, dtype: torch.dtype) -> Tensor:
    linear = name.removesuffix(".weight")
    weight = weight.cpu()
    if linear in adapter.linears:
        a_RI, b_OR = adapter.linears[linear]
        weight = torch.addmm(weight.float(), b_OR, a_RI, alpha=adapter.scale_of(linear))
    return weight.to(dtype).contiguous() if weight.is_floating_point() else weight


def _write_configuration(directory: Path, base: BaseModel, dtype: torch.dtype, *, is_tied: bool) -> None:
    config = copy.deepcopy(base.config)
    config.tie_word_embeddings = is_tied
    config.dtype = dtype
    config.architectures = config.architectures or [type(base.module).__name__]
    config.save_pretrained(str(directory))
    if base.module.generation_config is not None:
        base.module.generation_config.save_pretrained(str(directory))
