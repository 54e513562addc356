"""Base models: what is served, what is refused, and what is known about a loaded one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from services.core.errors import InvalidArgumentError
from services.model.base import BaseModel, load_base_model
from testing.tiny_models import EOS, HIDDEN_SIZE, VOCAB_SIZE, save_model, tiny_config


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
@pytest.mark.parametrize("tied", [True, False])
def test_supported_families_load_frozen(load: Callable[..., BaseModel], family: str, tied: bool) -> None:
    base = load(family, tied=tied)
    assert base.name == f"tiny-{family}"
    assert (base.vocab_size, base.max_context_length, base.dtype) == (VOCAB_SIZE, 128, torch.float32)
    assert base.eos_token_ids == {EOS}
    assert not base.module.training
    assert not any(parameter.requires_grad for parameter in base.module.parameters())


def test_every_adaptable_linear_is_found_in_model_order(load: Callable[..., BaseModel]) -> None:
    names = list(load("qwen3").adaptable_linears())
    assert len(names) == 2 * 7 + 1
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert names[-1] == "lm_head"


def test_tokenizer_files_are_all_that_a_client_needs(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    base = load("llama")
    for name, content in base.tokenizer_files.items():
        (tmp_path / name).write_bytes(content)
    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    assert rebuilt.encode("w5 w7 w5") == base.tokenizer.encode("w5 w7 w5") == [5, 7, 5]


def test_several_end_tokens_are_all_known(source: Callable[..., Path], tmp_path: Path) -> None:
    for path in source("qwen3").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [5, 7]}))
    base = load_base_model(str(tmp_path), name="tiny", device="cpu")
    assert base.eos_token_ids == {5, 7, EOS}


def test_of_a_model_that_also_sees_images_the_language_model_is_loaded(tmp_path: Path) -> None:
    """The form in which this family is published."""
    seeing = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": HIDDEN_SIZE}
    language = tiny_config("qwen3_5", tied=False).to_dict()
    save_model(tmp_path, tiny_config("qwen3_5"))  # for its tokenizer
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=language, vision_config=seeing)).eval()
    whole.save_pretrained(tmp_path)
    base = load_base_model(str(tmp_path), name="tiny", device="cpu")
    assert (base.vocab_size, base.max_context_length, base.has_linear_attention) == (VOCAB_SIZE, 128, True)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(base.module(input_ids=tokens).logits, whole(input_ids=tokens).logits)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "qwen3_moe"}, "family 'qwen3_moe'"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention"]}, "family 'qwen3_next'"),
        ({"model_type": "never_heard_of"}, "family 'never_heard_of'"),
        ({}, "family None"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "layers of the kind sliding_attention"),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "kind sliding_attention"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention", "full_attention"]}, "kind linear_attention"),
        ({"model_type": "qwen3_5", "text_config": {"layer_types": ["conv"]}}, "linear_attention.*kind conv"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"model_type": "qwen3", "rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}, "quantized"),
    ],
)
def test_others_are_refused_by_name_before_weights_are_read(
    tmp_path: Path, config: dict[str, object], complaint: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgumentError, match=complaint) as refused:
        load_base_model(str(tmp_path), name="acme/other", device="cpu")
    assert "acme/other" in refused.value.message
    assert "llama, qwen3, qwen3_5" in refused.value.message
    assert refused.value.violations[0].field == "base_model"
