"""Adapters on disk: PEFT reads them, nothing else is in them, and damage is found by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from services.core.errors import DataLossError, InvalidArgumentError
from services.core.storage.checkpoint_store import MANIFEST_FILE
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import read_adapter, write_adapter
from services.model.base import BaseModel
from services.model.logprobs import target_logprobs
from services.model.lora import Segment, install_lora
from services.model.manifest import Manifest
from testing.plain_peft import peft_warnings_ignored
from testing.rows import hidden_states, perturbed_adapter, random_tokens

FILES = (CONFIG_FILE, WEIGHTS_FILE)


@pytest.fixture
def base(load: Callable[..., BaseModel]) -> BaseModel:
    return load()


def _written(base: BaseModel, directory: Path, config: AdapterConfig | None = None, *, manifest: bool = True) -> Path:
    weights = perturbed_adapter(base, config or AdapterConfig(4, seed=1))
    write_adapter(directory, weights, base)
    if manifest:
        Manifest("sampler", "s:train:0", base.name, weights.config, "s:train:0:1").write(directory)
    return directory


SHAPES = (
    AdapterConfig(6, seed=1),
    AdapterConfig(6, train_unembed=False, seed=1),
    AdapterConfig(6, alpha=9, use_rslora=True, target_modules=("lm_head", "v_proj", "up_proj"), seed=1),
    AdapterConfig(
        6,
        alpha=0.7,
        target_modules=("lm_head", "model.layers.1.self_attn.v_proj"),
        rank_pattern={"model.layers.1.self_attn.v_proj": 2},
        alpha_pattern={"lm_head": 3},
        seed=1,
    ),
)


@pytest.mark.parametrize("shape", list(product(["llama", "qwen3", "qwen3_5"], [True, False], SHAPES)), ids=str)
def test_peft_reads_what_we_write(
    load: Callable[..., BaseModel], source: Callable[..., Path], tmp_path: Path, shape: tuple[str, bool, AdapterConfig]
) -> None:
    family, tied, config = shape
    base = load(family, tied=tied)
    weights = perturbed_adapter(base, config)
    write_adapter(tmp_path, weights, base)
    plain = AutoModelForCausalLM.from_pretrained(source(family, tied=tied))
    with peft_warnings_ignored():
        peft_model = PeftModel.from_pretrained(plain, str(tmp_path))
    (tokens,) = random_tokens(base, (20,))
    targets = torch.tensor(tokens).roll(-1)[:, None]
    logits = peft_model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    context = install_lora(base)
    with context.segments([Segment(0, 20, weights)]):
        ours = target_logprobs(base, hidden_states(base, [tokens]), targets, weights)
    torch.testing.assert_close(ours, logits.log_softmax(-1).gather(1, targets), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train_mlp": False},
        {"train_attn": False, "train_unembed": False},
        {"alpha": 7, "use_rslora": True, "target_modules": ("q_proj", "down_proj")},
    ],
    ids=str,
)
def test_what_was_written_is_read_back_bit_for_bit(base: BaseModel, tmp_path: Path, options: dict[str, Any]) -> None:
    config = AdapterConfig(5, seed=3, **options)
    weights = perturbed_adapter(base, config)
    write_adapter(tmp_path, weights, base)
    read = read_adapter(tmp_path, base)
    assert torch.equal(read.flat, weights.flat)
    assert read.config.shape(base.family) == config.shape(base.family)
    assert all(read.scale_of(name) == weights.scale_of(name) for name in weights.linears)


def test_no_weight_of_the_base_model_is_inside(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    base = load(tied=False)
    _written(base, tmp_path)
    with safe_open(tmp_path / WEIGHTS_FILE, "pt") as file:
        names = list(file.keys())
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    assert "base_model.model.lm_head.lora_A.weight" in names


def test_an_adapter_of_another_base_model_is_refused_by_name(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    _written(load("llama"), tmp_path, manifest=False)
    with pytest.raises(
        InvalidArgumentError, match=r"base_model_name_or_path must be 'tiny-qwen3' \(got 'tiny-llama'\)"
    ):
        read_adapter(tmp_path, load("qwen3"))


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(base: BaseModel, tmp_path: Path, file: str) -> None:
    (_written(base, tmp_path) / file).unlink()
    with pytest.raises(DataLossError, match=file):
        read_adapter(tmp_path, base)


@pytest.mark.parametrize("file", [*FILES, MANIFEST_FILE])
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_truncated_file_is_named(base: BaseModel, tmp_path: Path, file: str, keep: int) -> None:
    path = _written(base, tmp_path) / file
    path.write_bytes(path.read_bytes().rstrip()[:keep])
    with pytest.raises(DataLossError, match=file):
        read_adapter(tmp_path, base)


def test_one_flipped_bit_is_found(base: BaseModel, tmp_path: Path) -> None:
    path = _written(base, tmp_path) / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataLossError, match=r"adapter_model\.safetensors is corrupted"):
        read_adapter(tmp_path, base)


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_without_a_manifest_a_truncated_file_is_still_refused(base: BaseModel, tmp_path: Path, keep: int) -> None:
    path = _written(base, tmp_path, manifest=False) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataLossError, match=WEIGHTS_FILE):
        read_adapter(tmp_path, base)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"use_dora": True}, r"use_dora must be False, .* \(got True\)"),
        ({"rank_pattern": {"q_proj": 2}}, r"q_proj.* must have shape \(2, 40\)"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "router"]}, r"target_modules must be such that .*router"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": "all-linear"}, r"target_modules must be such that lm_head is adapted"),
        ({"r": 8}, r"must have shape \(8, 40\) .* \(got \(4, 40\)\)"),
        ({"r": 0}, r"r must be a whole number of at least 1 \(got 0\)"),
        ({"lora_alpha": "1.5"}, r"lora_alpha must be a number from .* \(got '1\.5'\)"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}, "target_modules must be such that"),
    ],
)
def test_what_we_cannot_represent_is_refused_by_option(
    base: BaseModel, tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    path = _written(base, tmp_path, manifest=False) / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidArgumentError, match=complaint):
        read_adapter(tmp_path, base)


def test_a_manifest_of_a_later_format_is_refused(base: BaseModel, tmp_path: Path) -> None:
    path = _written(base, tmp_path) / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(DataLossError, match="format 2"):
        read_adapter(tmp_path, base)
