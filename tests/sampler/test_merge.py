"""Merged models: plain transformers computes with one what the base model computes with the adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.core.errors import CancelledError
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import write_adapter
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel, load_base_model
from services.sampler.engine.merged_model import INDEX_FILE, write_merged
from services.sampler.engine.native import NativeSamplerEngine
from testing.plain_peft import peft_warnings_ignored
from testing.rows import perturbed_adapter
from tests.model.fixtures import load, source

__all__ = ["load", "source"]

TOKENS = torch.tensor([[5, 17, 3, 60, 8, 44, 21, 9]])


def _adapter_logprobs(source: Path, adapter: AdapterWeights, base: BaseModel, directory: Path) -> torch.Tensor:
    """By PEFT's own forward."""
    directory.mkdir()
    write_adapter(directory, adapter, base)
    with peft_warnings_ignored():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), str(directory))
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits.log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(6, seed=1),
        AdapterConfig(6, train_unembed=False, seed=1),
        AdapterConfig(4, use_rslora=True, seed=2),
        AdapterConfig(
            4,
            seed=3,
            alpha=5.66,
            target_modules=("up_proj", "model.layers.1.self_attn.v_proj"),
            rank_pattern={"model.layers.1.self_attn.v_proj": 9},
            alpha_pattern={"model.layers.0.mlp.up_proj": 0.9},
        ),
    ],
    ids=["all", "no unembedding", "rslora", "patterns"],
)
@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000], ids=["one file", "shards"])
def test_a_merged_model_is_the_base_model_with_the_adapter(
    load: Callable[..., BaseModel],
    source: Callable[..., Path],
    tmp_path: Path,
    family: str,
    tied: bool,
    config: AdapterConfig,
    shard_bytes: int,
) -> None:
    base = load(family, tied=tied)
    adapter = perturbed_adapter(base, config)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(merged, base, adapter, shard_bytes=shard_bytes)
    assert (merged / INDEX_FILE).exists() == (shard_bytes == 20_000)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        logprobs = plain(input_ids=TOKENS, use_cache=False).logits.log_softmax(-1)
    expected = _adapter_logprobs(source(family, tied=tied), adapter, base, tmp_path / "adapter")
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-4)
    unties = "lm_head" in config.targets(base.family)
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] == (tied and not unties)
    assert AutoTokenizer.from_pretrained(merged).decode([5, 6]) == base.tokenizer.decode([5, 6])


def test_a_tied_weight_is_written_once(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    base = load("qwen3")
    write_merged(tmp_path, base, perturbed_adapter(base, AdapterConfig(4, train_unembed=False, seed=1)))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - a safe_open is no mapping


def test_the_dtype_is_the_base_models_own(source: Callable[..., Path], tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    model = AutoModelForCausalLM.from_pretrained(source("qwen3"), dtype=torch.bfloat16)
    model.save_pretrained(stored)
    AutoTokenizer.from_pretrained(source("qwen3")).save_pretrained(stored)
    base = load_base_model(str(stored), name="stored", device="cpu")
    assert base.dtype == torch.float32
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(merged, base, perturbed_adapter(base, AdapterConfig(4, seed=1)))
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_model_that_is_being_served_is_merged_unchanged(
    load: Callable[..., BaseModel], tmp_path: Path, deterministic: bool
) -> None:
    fresh, served = load("qwen3"), load("qwen3")
    options = {"max_sequences": 2, "max_tokens_per_step": 64, "max_cached_tokens": 256, "max_adapters": 2}
    NativeSamplerEngine(served, **options, deterministic=deterministic)
    for name, base in (("fresh", fresh), ("served", served)):
        (tmp_path / name).mkdir()
        write_merged(tmp_path / name, base, perturbed_adapter(fresh, AdapterConfig(4, seed=1)))
    names = sorted(path.name for path in (tmp_path / "fresh").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "served").iterdir())
    assert all((tmp_path / "fresh" / n).read_bytes() == (tmp_path / "served" / n).read_bytes() for n in names)


def test_a_merge_that_nobody_wants_stops(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    base, calls = load("qwen3"), []

    def check_wanted() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise CancelledError("given up")

    with pytest.raises(CancelledError):
        write_merged(tmp_path, base, perturbed_adapter(base, AdapterConfig(4, seed=1)), check_wanted=check_wanted)
    assert len(calls) == 3
