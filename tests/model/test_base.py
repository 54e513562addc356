"""Base models: what is served, what is refused, and what is known about a loaded one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from services.core.errors import InvalidArgumentError
from services.model.base import BaseModel, load_base_model
from services.model.families import SUPPORTED_FAMILIES
from testing.tiny_models import EOS, HIDDEN_SIZE, VOCAB_SIZE, save_model, save_tiny_model, tiny_config

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
UNEMBEDDING = "lm_head.weight"


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
    assert ", ".join(SUPPORTED_FAMILIES) in refused.value.message
    assert refused.value.violations[0].field == "base_model"


def load_edited(directory: Path, edit: Callable[[dict[str, Tensor]], object], family: str, *, tied: bool) -> BaseModel:
    """A tiny model, loaded after its tensors were edited on disk."""
    path = save_tiny_model(directory, family, tied=tied) / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return load_base_model(str(directory), name="tiny", device="cpu")


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda tensors: tensors.pop(NORM), rf"1 tensor \({NORM}\) missing$"),
        (
            lambda tensors: tensors.update({"model.final_norm.weight": tensors.pop(NORM)}),
            rf"1 tensor \({NORM}\) missing; 1 tensor \(model.final_norm.weight\) unexpected$",
        ),
        (
            lambda tensors: tensors.update({NORM: torch.ones(7)}),
            rf"1 tensor \({NORM} \[7\] instead of \[{HIDDEN_SIZE}\]\) of another shape$",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.bias": torch.ones(56)}),
            r"1 tensor \(model.layers.0.mlp.up_proj.bias\) unexpected$",
        ),
        (
            lambda tensors: tensors.update({f"head.{index}": torch.ones(1) for index in range(5)}),
            r"5 tensors \(head.0, head.1, head.2, ...\) unexpected$",
        ),
    ],
    ids=["missing", "renamed", "reshaped", "extra", "many"],
)
def test_files_without_exactly_the_tensors_of_the_model_are_refused(
    tmp_path: Path, family: str, tied: bool, edit: Callable[[dict[str, Tensor]], object], fault: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=fault) as refused:
        load_edited(tmp_path, edit, family, tied=tied)
    assert refused.value.reason == "UNREADABLE_BASE_MODEL"
    assert refused.value.violations[0].field == "base_model"


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
def test_only_a_tied_unembedding_may_be_left_out(tmp_path: Path, family: str) -> None:
    def without(name: str) -> Callable[[dict[str, Tensor]], object]:
        return lambda tensors: tensors.pop(name)

    with pytest.raises(InvalidArgumentError, match=rf"1 tensor \({UNEMBEDDING}\) missing"):
        load_edited(tmp_path / "untied", without(UNEMBEDDING), family, tied=False)
    with pytest.raises(InvalidArgumentError, match=rf"2 tensors \({UNEMBEDDING}, {EMBEDDING}\) missing"):
        load_edited(tmp_path / "tied", without(EMBEDDING), family, tied=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", sorted(SUPPORTED_FAMILIES))
def test_a_whole_model_of_every_family_loads_with_its_weights(tmp_path: Path, model_type: str, tied: bool) -> None:
    config = tiny_config(model_type.removesuffix("_text"), tied=tied)
    save_model(tmp_path, config)
    stored = load_file(tmp_path / "model.safetensors")
    if model_type == "qwen3_5":  # published with a vision tower, as ConditionalGeneration
        seeing = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 40}
        whole = Qwen3_5Config(text_config=config.to_dict(), vision_config=seeing, tie_word_embeddings=tied)
        Qwen3_5ForConditionalGeneration(whole).save_pretrained(tmp_path)
        saved = load_file(tmp_path / "model.safetensors")
        stored = {name.replace("language_model.", ""): tensor for name, tensor in saved.items() if "visual" not in name}
        assert len(stored) < len(saved)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model_type
    assert (UNEMBEDDING in stored) is not tied
    loaded = load_base_model(str(tmp_path), name="tiny", device="cpu").module.state_dict()
    assert loaded.keys() - {UNEMBEDDING} == stored.keys() - {UNEMBEDDING}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("family", "edit"),
    [
        ("llama", lambda tensors: tensors.update({UNEMBEDDING: tensors[EMBEDDING].clone()})),
        ("qwen3", lambda tensors: tensors.update({UNEMBEDDING: tensors.pop(EMBEDDING)})),
        ("llama", lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})),
        ("qwen3_5", lambda tensors: tensors.update({"mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2)})),
    ],
    ids=["both of a tied pair", "the other of a tied pair", "rotary frequencies", "multi-token prediction"],
)
def test_tensors_that_the_language_model_does_not_need_may_be_there(
    tmp_path: Path, load: Callable[..., BaseModel], family: str, edit: Callable[[dict[str, Tensor]], object]
) -> None:
    loaded = load_edited(tmp_path, edit, family, tied=True).module.state_dict()
    whole = load(family, tied=True).module.state_dict()
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (save_tiny_model(tmp_path, "qwen3") / "model.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match=r"with weights .*model\.safetensors") as refused:
        load_base_model(str(tmp_path), name="tiny", device="cpu")
    assert refused.value.reason == "UNREADABLE_BASE_MODEL"


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
@pytest.mark.parametrize(
    "left",
    [
        None,
        {},
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"90": {"content": "<tool>", "special": False}}},
    ],
)
def test_a_directory_without_tokenizer_files_is_refused(
    tmp_path: Path, family: str, left: dict[str, object] | None
) -> None:
    """Whatever is left of tokenizer_config.json, from which alone transformers may make a tokenizer."""
    save_tiny_model(tmp_path, family)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    if left is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(left))
    with pytest.raises(InvalidArgumentError, match=r"with its tokenizer: tokenizer\.json") as refused:
        load_base_model(str(tmp_path), name="tiny", device="cpu")
    assert refused.value.reason == "UNREADABLE_BASE_MODEL"
    assert refused.value.violations[0].field == "base_model"


def test_a_tokenizer_in_vocabulary_files_is_read(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "qwen3")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_base_model(str(tmp_path), name="tiny", device="cpu").tokenizer.encode("ab") == [2]


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    larger = tiny_config("qwen3")
    larger.vocab_size = VOCAB_SIZE + 1
    save_tiny_model(tmp_path, "qwen3")
    save_model(tmp_path / "larger", larger)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tmp_path / "larger" / name).read_bytes())
    fault = f"the tokenizer has {VOCAB_SIZE + 1} tokens, the model a vocab_size of {VOCAB_SIZE}$"
    with pytest.raises(InvalidArgumentError, match=fault) as refused:
        load_base_model(str(tmp_path), name="tiny", device="cpu")
    assert refused.value.reason == "UNREADABLE_BASE_MODEL"


def test_tokens_added_beyond_the_models_vocabulary_are_allowed(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path, "qwen3"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(tmp_path)
    base = load_base_model(str(tmp_path), name="tiny", device="cpu")
    assert len(base.tokenizer) == VOCAB_SIZE + 1 > base.vocab_size
