"""Adapters: shape, initialisation, and their place in one flat buffer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.core.errors import InvalidArgumentError
from services.model.adapter_config import AdapterConfig
from services.model.adapters import init_adapter
from services.model.base import BaseModel
from testing.plain_peft import PlainPeft


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train_unembed", [True, False])
def test_initialisation_is_pefts_own(
    load: Callable[..., BaseModel], source: Callable[..., Path], family: str, tied: bool, train_unembed: bool
) -> None:
    config = AdapterConfig(5, train_unembed=train_unembed, seed=11)
    weights = init_adapter(load(family, tied=tied), config)
    plain = PlainPeft(source(family, tied=tied), config)
    assert ("lm_head" in weights.linears) == train_unembed
    for name, (a, b) in weights.linears.items():
        their_a, their_b = plain.matrices(name)
        assert torch.equal(a, their_a)
        assert torch.equal(b, their_b)
        assert not b.any()


def test_same_seed_same_bits_and_the_callers_randomness_is_left_alone(load: Callable[..., BaseModel]) -> None:
    base = load()
    state = torch.random.get_rng_state()
    first = init_adapter(base, AdapterConfig(4, seed=1))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert torch.equal(first.flat, init_adapter(base, AdapterConfig(4, seed=1)).flat)
    assert not torch.equal(first.flat, init_adapter(base, AdapterConfig(4, seed=2)).flat)


def test_initialisation_leaves_the_base_model_as_it_was(load: Callable[..., BaseModel]) -> None:
    base = load()
    before = [name for name, _ in base.module.named_modules()]
    init_adapter(base, AdapterConfig(4, seed=1))
    assert [name for name, _ in base.module.named_modules()] == before


def test_matrices_are_views_that_cover_the_flat_buffer_once(load: Callable[..., BaseModel]) -> None:
    weights = init_adapter(load(), AdapterConfig(3, seed=1))
    for a, b in weights.linears.values():
        a.add_(1)
        b.add_(1)
    covered = weights.flat.clone()
    assert torch.equal(covered, init_adapter(load(), AdapterConfig(3, seed=1)).flat + 1)
    zeros = weights.zeros()
    assert not zeros.flat.any()
    assert torch.equal(weights.flat, covered)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"train_mlp": False, "train_unembed": False}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"train_attn": False, "train_unembed": False}, {"gate_proj", "up_proj", "down_proj"}),
        ({"train_attn": False, "train_mlp": False}, {"lm_head"}),
    ],
)
def test_flags_choose_the_linears(load: Callable[..., BaseModel], flags: dict[str, bool], expected: set[str]) -> None:
    weights = init_adapter(load(), AdapterConfig(2, seed=0, **flags))
    assert {name.rpartition(".")[2] for name in weights.linears} == expected


def test_explicit_targets_take_the_place_of_the_flags(load: Callable[..., BaseModel]) -> None:
    base, config = load(), AdapterConfig(2, seed=0, target_modules=("down_proj", "q_proj"))
    weights = init_adapter(base, config)
    assert {name.rpartition(".")[2] for name in weights.linears} == {"q_proj", "down_proj"}
    same = AdapterConfig(2, seed=9, target_modules=("q_proj", "down_proj"))
    assert config.shape(base.family) == same.shape(base.family)
    attention = AdapterConfig(2, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    flags = AdapterConfig(2, train_mlp=False, train_unembed=False)
    assert attention.shape(base.family) == flags.shape(base.family)


def test_scale_is_alpha_over_rank_or_its_root() -> None:
    assert AdapterConfig(8).scale_of("lm_head") == 4.0
    assert AdapterConfig(16, alpha=8).scale_of("lm_head") == 0.5
    assert AdapterConfig(16, alpha=8, use_rslora=True).scale_of("lm_head") == 2.0
    uneven = AdapterConfig(16, alpha=8, rank_pattern={"a": 4, "b": 4}, alpha_pattern={"b": 0.5})
    assert [uneven.scale_of(name) for name in "abc"] == [2.0, 0.125, 0.5]


def test_nonsense_is_refused_by_field(load: Callable[..., BaseModel]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"lora_config\.rank: must be at least 1 \(got 0\)"):
        AdapterConfig(0)
    with pytest.raises(InvalidArgumentError, match=r"lora_config\.alpha: must be finite \(got nan\)"):
        AdapterConfig(4, alpha=float("nan"))
    with pytest.raises(InvalidArgumentError, match=r"lora_config\.rank: must be at least 1 \(got -2\)"):
        AdapterConfig(4, rank_pattern={"lm_head": -2})
    with pytest.raises(
        InvalidArgumentError, match=r"lora_config\.target_modules: must be some of q_proj, .* \(got \['router'\]\)"
    ):
        init_adapter(load(), AdapterConfig(4, target_modules=("q_proj", "router"), seed=0))
    with pytest.raises(InvalidArgumentError, match="train_attn, train_mlp and train_unembed"):
        AdapterConfig(4, train_attn=False, train_mlp=False, train_unembed=False)
    with pytest.raises(InvalidArgumentError, match=r"lora_config\.seed"):
        init_adapter(load(), AdapterConfig(4))
