"""External weights: every B A, scaled by lora_alpha / r, is the product that PEFT computes from our own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import write_adapter
from services.model.base import BaseModel
from services.model.external_files import write_external
from testing.plain_peft import peft_warnings_ignored
from testing.rows import perturbed_adapter

SHAPES = (
    AdapterConfig(6, seed=1),
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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_peft_under_the_names_of_the_service(
    load: Callable[..., BaseModel], source: Callable[..., Path], tmp_path: Path, shape: AdapterConfig, tied: bool
) -> None:
    base = load("qwen3", tied=tied)
    weights = perturbed_adapter(base, shape)
    for name, write in (("peft", write_adapter), ("external", write_external)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, weights, base)
    config = json.loads((tmp_path / "external" / CONFIG_FILE).read_text())
    stored = load_file(tmp_path / "external" / WEIGHTS_FILE)
    with peft_warnings_ignored():
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(source("qwen3", tied=tied)), tmp_path / "peft"
        )
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert len(stored) == 2 * len(layers) > 0
    for linear, layer in layers.items():
        name = "base_model.model." + ("model.unembed_tokens" if linear == "lm_head" else linear)
        a, b = (stored[f"{name}.lora_{part}.weight"] for part in "AB")
        assert_close(config["lora_alpha"] / config["r"] * b @ a, layer.get_delta_weight("default"))
    assert "lm_head" not in config["target_modules"]
    assert not config["use_rslora"]
