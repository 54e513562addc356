"""Fingerprints of base models: what they notice, what they do not depend on, and what a difference means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from services.model.base import BaseModel, load_base_model
from services.model.fingerprint import BLOCK_BYTES, BLOCKS, BaseModelChangedError, Fingerprint, fingerprint_of
from services.model.tokenizer_files import PATTERNS, read_files

WEIGHTS = "model.safetensors"
PARTS = ("configuration", "tokenizer", "weights")


def parts(directory: Path) -> list[str]:
    config = (directory / "config.json").read_bytes()
    return fingerprint_of(directory, config, read_files(directory, PATTERNS)).split("-")


def changed(one: list[str], other: list[str]) -> list[str]:
    return [part for part, left, right in zip(PARTS, one, other, strict=True) if left != right]


@pytest.fixture
def model(source: Callable[..., Path], tmp_path: Path) -> Path:
    """A directory of its own."""
    return Path(shutil.copytree(source("llama"), tmp_path / "model"))


def test_a_loaded_base_model_has_its_fingerprint(model: Path) -> None:
    base = load_base_model(str(model), name="tiny", device="cpu", accepted_fingerprints=["other"])
    assert base.fingerprint == Fingerprint("-".join(parts(model)), frozenset({"other"}))


def test_moved_sharded_and_relabelled_files_are_the_same_model(model: Path) -> None:
    before = parts(model)
    moved = model.rename(model.parent / "dépôt, zwei Wörter")
    assert parts(moved) == before
    AutoModelForCausalLM.from_pretrained(moved).save_pretrained(model, max_shard_size="30KB")
    assert len(list(model.glob("*.safetensors"))) > 1
    config = json.loads((moved / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    shutil.copy(moved / "tokenizer.json", model)
    shutil.copy(moved / "tokenizer_config.json", model)
    for name in ("README.md", "adapter_model.safetensors", "training_args.bin"):
        (model / name).write_bytes(b"no part of the model")
    assert parts(model) == before


def test_a_change_of_any_tensor_is_noticed(model: Path) -> None:
    before, tensors = parts(model), load_file(model / WEIGHTS)
    for name, tensor in tensors.items():
        nudged = tensor.clone()
        nudged.view(-1)[tensor.numel() // 2] += 1e-6
        save_file({**tensors, name: nudged}, model / WEIGHTS, {"format": "pt"})
        assert changed(before, parts(model)) == ["weights"], name


def test_a_large_tensor_is_sampled_from_its_first_byte_to_its_last(tmp_path: Path) -> None:
    tensor = torch.zeros(3 * BLOCKS * BLOCK_BYTES, dtype=torch.uint8)
    seen = set()
    for at in (None, 0, 1 << 20, tensor.numel() - 1):
        different = tensor.clone()
        if at is not None:
            different[at : at + 3 * BLOCK_BYTES] += 1
        save_file({"small": torch.zeros(3), "large": different}, tmp_path / WEIGHTS)
        seen.add(fingerprint_of(tmp_path, b"{}", {}))
    assert len(seen) == 4


def test_names_dtypes_and_shapes_count(tmp_path: Path) -> None:
    variants = [
        {"a": torch.zeros(2, 3)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1)},
    ]
    seen = set()
    for tensors in variants:
        save_file(tensors, tmp_path / WEIGHTS)
        seen.add(fingerprint_of(tmp_path, b"{}", {}))
    assert len(seen) == len(variants)


def test_weights_in_another_format_count_in_whole(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    torch.save(tensors, model / "pytorch_model.bin")
    before = parts(model)
    next(iter(tensors.values())).view(-1)[0] += 1
    torch.save(tensors, model / "pytorch_model.bin")
    assert changed(before, parts(model)) == ["weights"]


def test_configuration_and_tokenizer_count(model: Path) -> None:
    before = parts(model)
    (model / "chat_template.jinja").write_text("x")
    assert changed(before, parts(model)) == ["tokenizer"]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert changed(before, parts(model)) == ["configuration", "tokenizer"]


def test_what_another_model_has_made_is_refused_unless_it_is_accepted(load: Callable[..., BaseModel]) -> None:
    own = load().fingerprint.value
    config, tokenizer, weights = own.split("-")
    other = f"{config}-{tokenizer}-{weights[::-1]}"
    served = Fingerprint(own, frozenset({"0-0-0"}))
    for fine in ("", own, "0-0-0"):
        served.check(fine, "it")
    with pytest.raises(BaseModelChangedError) as refused:
        served.check(other, "the checkpoint")
    assert refused.value.reason == "BASE_MODEL_CHANGED"
    for words in ("the checkpoint is of another", other, own, "(other weights)", f"--accepted-fingerprints {other}"):
        assert words in refused.value.message
