"""Adapters as PEFT saves them, however they were configured: read as PEFT reads them, or refused by option."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from services.core.errors import InvalidArgumentError
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import read_adapter, write_adapter
from services.model.adapter_import import import_adapter
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.families import SUPPORTED_FAMILIES
from services.model.peft_options import OPTIONS
from testing.rows import perturbed_adapter

Q0, Q1, DOWN1 = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "one name": {"target_modules": ["down_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "unembedding": {"target_modules": ["lm_head", "v_proj"]},
    "full names": {"target_modules": [Q0, DOWN1]},
    "dotted names": {"target_modules": ["self_attn.q_proj", "mlp.up_proj"]},
    "names of nothing": {"target_modules": ["q_proj", "router", "w1"]},
    "regex": {"target_modules": r".*\.(q_proj|v_proj)"},
    "regex with flags": {"target_modules": r"(?i).*\.(Q_proj|V_proj)"},
    "regex with lookahead": {"target_modules": r"^(?!.*layers\.0).*(?:self_attn|mlp)\.(?:q_proj|down_proj)$"},
    "one layer": {"layers_to_transform": 1},
    "layers": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "layers of lists": {"layers_to_transform": [1], "layers_pattern": ["h", "lay.rs"]},
    "exclude names": {"exclude_modules": ["layers.0.self_attn.v_proj"]},
    "exclude regex": {"exclude_modules": r".*layers\.1.*v_proj"},
    "rank by name": {"rank_pattern": {"q_proj": 2}},
    "rank by layer": {"rank_pattern": {"layers.1.self_attn.q_proj": 9, "q_proj": 2}},
    "rank by regex": {"rank_pattern": {r".*layers\.[1-9]\..*": 3, "^model.layers.0.self_attn.v_proj": 1}},
    "alpha by name": {"alpha_pattern": {"q_proj": 16, "v_proj": 0.3}},
    "both, rslora": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"layers\.0\..*": 5}, "use_rslora": True},
    "all ranks": {"rank_pattern": {"q_proj": 2, "v_proj": 6}},
    "fraction": {"lora_alpha": 5.66},
    "small": {"lora_alpha": 1e-3},
    "negative": {"lora_alpha": -2},
    "dropout": {"lora_dropout": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "eva": {"init_lora_weights": "eva"},
    "random": {"init_lora_weights": False},
}


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Silences what PEFT says about unusual options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def base(load: Callable[..., BaseModel]) -> BaseModel:
    return load()


@pytest.fixture
def plain(source: Callable[..., Path]) -> Callable[[], Any]:
    """The plain base model, freshly loaded."""
    return lambda: AutoModelForCausalLM.from_pretrained(source(), dtype=torch.float32)


@pytest.fixture
def save(plain: Callable[[], Any], base: BaseModel, tmp_path: Path) -> Callable[..., Path]:
    """An adapter with random weights as PEFT saves it."""

    def saved(options: dict[str, Any]) -> Path:
        directory = tmp_path / "adapter"
        chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
        generator = torch.Generator().manual_seed(3)
        with warnings_ignored(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = get_peft_model(plain(), LoraConfig(**chosen))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_" in name:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            model.save_pretrained(str(directory))
        change(directory, base_model_name_or_path=base.name)
        return directory

    return saved


@pytest.fixture
def write(base: BaseModel, tmp_path: Path) -> Callable[..., Path]:
    """Much the same without PEFT's models, which take their time."""

    def written(**changes: object) -> Path:
        config = AdapterConfig(4, alpha=8, target_modules=("q_proj", "v_proj"), seed=1)
        write_adapter(tmp_path, perturbed_adapter(base, config), base)
        change(tmp_path, **changes)
        return tmp_path

    return written


def change(directory: Path, **changes: object) -> None:
    path = directory / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def peft_deltas(plain: Callable[[], Any], directory: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds to each weight, and nothing but that."""
    untouched, model = plain(), plain()
    with warnings_ignored():
        loaded = PeftModel.from_pretrained(model, str(directory))
    weights = untouched.state_dict()
    deltas = {}
    inner: Any = loaded.base_model.model
    for name, module in inner.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            assert torch.equal(module.base_layer.weight, weights[f"{name}.weight"]), "the base model was changed"
            deltas[name] = module.get_delta_weight("default").detach()
    return deltas


def our_deltas(weights: AdapterWeights) -> dict[str, torch.Tensor]:
    return {name: weights.scale_of(name) * (b @ a) for name, (a, b) in weights.linears.items()}


def read(directory: Path, base: BaseModel) -> AdapterWeights:
    return import_adapter(directory / CONFIG_FILE, directory / WEIGHTS_FILE, base, rename_base_model=False)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_peft_saves_is_read_as_peft_reads_it(
    base: BaseModel, plain: Callable[[], Any], save: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    directory = save(VARIANTS[name])
    weights, expected = read(directory, base), peft_deltas(plain, directory)
    assert_same(our_deltas(weights), expected)
    again = tmp_path / "again"
    again.mkdir()
    write_adapter(again, weights, base)
    assert_same(peft_deltas(plain, again), expected)
    back = read_adapter(again, base)
    assert torch.equal(back.flat, weights.flat)
    assert back.config.shape(base.family) == weights.config.shape(base.family)


@pytest.mark.parametrize(
    "changes",
    [
        {"some_tool_provenance": {"source": "verl"}, "unsloth_fixed": True},
        {"fan_in_fan_out": True},
        {"task_type": "SEQ_2_SEQ_LM", "auto_mapping": {"base_model_class": "os"}, "peft_version": "9.9"},
        {"target_modules": "all-linear"},
        {"target_modules": None},
        {"qalora_group_size": 32, "eva_config": {"rho": 2.0}, "loftq_config": {"loftq_bits": 4}},
        {"use_dora": None, "bias": None, "modules_to_save": [], "rank_pattern": None, "exclude_modules": ""},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(base: BaseModel, write: Callable[..., Path], changes: dict[str, object]) -> None:
    expected = read(write(), base)
    found = read(write(**changes), base)
    assert torch.equal(found.flat, expected.flat)
    assert found.config == expected.config


def test_one_name_needs_no_list(base: BaseModel, tmp_path: Path) -> None:
    weights = perturbed_adapter(base, AdapterConfig(4, target_modules=("q_proj",), seed=1))
    write_adapter(tmp_path, weights, base)
    change(tmp_path, target_modules="q_proj")
    assert torch.equal(read(tmp_path, base).flat, weights.flat)


def test_linears_without_tensors_are_not_adapted(base: BaseModel, write: Callable[..., Path]) -> None:
    directory = write()
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1" in name}, directory / WEIGHTS_FILE)
    assert set(read(directory, base).linears) == {Q1, Q1.replace("q_proj", "v_proj")}


def test_an_adapter_of_the_class_that_also_sees_images_is_taken(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    text = load("qwen3_5")
    served = dataclasses.replace(text, family=SUPPORTED_FAMILIES["qwen3_5"])
    with torch.device("meta"):
        config = Qwen3_5Config(text_config=text.config.to_dict())
        names = {name for name, _ in Qwen3_5ForConditionalGeneration(config).named_modules()}
    linears = {name: name.replace("model.layers", "model.language_model.layers") for name in text.adaptable_linears()}
    assert set(linears.values()) <= names, "as transformers calls them"
    alone, down = "model.layers.1.self_attn.q_proj", "model.layers.2.mlp.down_proj"
    weights = perturbed_adapter(
        text,
        AdapterConfig(
            4,
            alpha=8,
            target_modules=("lm_head", alone, down),
            rank_pattern={alone: 3},
            alpha_pattern={down: 0.5},
            seed=1,
        ),
    )
    write_adapter(tmp_path, weights, text)
    assert torch.equal(read(tmp_path, served).flat, weights.flat)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    renamed = {
        name.replace("model.model.layers", "model.model.language_model.layers"): tensors[name] for name in tensors
    }
    embedding = "base_model.model.model.language_model.embed_tokens.weight"
    save_file({**renamed, embedding: text.module.state_dict()["model.embed_tokens.weight"]}, tmp_path / WEIGHTS_FILE)
    change(
        tmp_path,
        target_modules=r"lm_head|model\.language_model\..*(1\.self_attn\.q_proj|2\.mlp\.down_proj)",
        rank_pattern={linears[alone]: 3},
        alpha_pattern={r"model\.language_model\..*\.down_proj": 0.5},
    )
    found = read(tmp_path, served)
    assert torch.equal(found.flat, weights.flat)
    assert found.config.shape(served.family) == weights.config.shape(served.family)
    elsewhere = {name: tensor for name, tensor in renamed.items() if "lm_head" not in name}
    save_file(elsewhere, tmp_path / WEIGHTS_FILE)
    with pytest.raises(InvalidArgumentError, match=f"without a matrix .* tensor is '{min(elsewhere)}'"):
        read(tmp_path, text)
    save_file({name: tensor.clone() for name, tensor in {**tensors, **renamed}.items()}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(InvalidArgumentError, match=r"names of two classes of models, model and model\.language_model"):
        read(tmp_path, served)


def test_an_adapter_that_was_converted_to_lora_is_taken(
    base: BaseModel, plain: Callable[[], Any], tmp_path: Path
) -> None:
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "use_rslora": True}
    with warnings_ignored():
        model = get_peft_model(plain(), LoraConfig(init_lora_weights="pissa", **options))
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(str(tmp_path / "initial"))
        model.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.1)
        model.save_pretrained(str(tmp_path / "pissa"))
        model.save_pretrained(
            str(tmp_path / "lora"), path_initial_model_for_weight_conversion=str(tmp_path / "initial")
        )
    for directory in (tmp_path / "pissa", tmp_path / "lora"):
        change(directory, base_model_name_or_path=base.name)
    with pytest.raises(InvalidArgumentError, match=r"init_lora_weights must be .*conversion.* \(got 'pissa'\)"):
        read(tmp_path / "pissa", base)
    assert_same(our_deltas(read(tmp_path / "lora", base)), peft_deltas(plain, tmp_path / "lora"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"peft_type": "ADALORA"}, r"peft_type must be 'LORA' \(got 'ADALORA'\)"),
        ({"use_dora": True}, r"use_dora must be False, .* \(got True\)"),
        ({"bias": "lora_only"}, r"bias must be 'none', .* \(got 'lora_only'\)"),
        ({"lora_bias": True}, "lora_bias must be False"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save must be None"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices must be None"),
        ({"target_parameters": ["gate_up_proj"]}, "target_parameters must be None"),
        ({"layer_replication": [[0, 2]]}, "layer_replication must be None"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens must be None"),
        ({"megatron_config": {"a": 1}}, "megatron_config must be None"),
        ({"use_qalora": True}, "use_qalora must be False"),
        ({"kasa_config": {"beta": 1}}, "kasa_config must be None"),
        *(
            ({"init_lora_weights": kind}, rf"init_lora_weights must be one of true, .* \(got '{kind}'\)")
            for kind in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "of_tomorrow")
        ),
        ({"r": 2}, r"must have shape \(2, 40\)"),
        ({"rank_pattern": {"v_proj": 2}}, r"v_proj.* must have shape \(2, 40\) .*\(got \(4, 40\)\)"),
        ({"rank_pattern": {"v_proj": 0}}, "rank_pattern must be numbers by name"),
        ({"rank_pattern": ["v_proj"]}, "rank_pattern must be numbers by name"),
        ({"rank_pattern": {f"a{i}": 1 for i in range(1000)}}, r"rank_pattern must be of at most \d+ entries"),
        ({"alpha_pattern": {"v_proj": "many"}}, "alpha_pattern must be numbers by name"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a number from"),
        ({"lora_alpha": True}, "lora_alpha must be a number from"),
        ({"lora_alpha": "16"}, "lora_alpha must be a number from"),
        ({"target_modules": ["q_proj"]}, r"target_modules must be such that \S+v_proj is adapted.* \(2 such"),
        ({"target_modules": "q_proj"}, "target_modules must be such that"),
        ({"target_modules": []}, "target_modules must be such that"),
        ({"target_modules": [5]}, "target_modules must be a name or a list of names"),
        ({"exclude_modules": ["v_proj"]}, r"exclude_modules must be such that \S+v_proj is adapted"),
        ({"layers_to_transform": [0]}, r"target_modules must be such that \S+layers.1"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be a number of a layer"),
        ({"target_modules": "(q_proj"}, r"target_modules must be a regular expression that can be read .*missing \)"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern must be a regular expression that can be read"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_changes_the_meaning_is_refused_by_name(
    base: BaseModel, write: Callable[..., Path], changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=complaint) as refused:
        read(write(**changes), base)
    assert refused.value.reason == "BAD_ADAPTER"


def test_every_option_of_this_peft_has_a_row() -> None:
    assert {field.name for field in dataclasses.fields(LoraConfig)} == OPTIONS.keys()


def test_an_option_of_a_later_peft_is_refused_unless_it_is_at_its_default(
    base: BaseModel, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write(use_bdlora={"blocks": 2})
    known = {option: use for option, use in OPTIONS.items() if option not in ("use_bdlora", "use_dora", "kasa_config")}
    monkeypatch.setattr("services.model.peft_options.OPTIONS", known)
    with pytest.raises(InvalidArgumentError, match="use_bdlora must be None"):
        read(directory, base)
