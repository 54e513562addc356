"""The multi-adapter linear: equal to plain PEFT, and nothing crosses from one segment into another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.model.adapter_config import AdapterConfig
from services.model.adapters import init_adapter
from services.model.base import BaseModel
from services.model.logprobs import target_logprobs
from services.model.lora import Segment, install_lora
from testing.plain_peft import PlainPeft, largest_difference
from testing.rows import hidden_states, perturbed_adapter, random_tokens
from testing.tiny_models import HIDDEN_SIZE
from tests.model.tenants import run_tenants, shifted


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_tenants_in_one_row_get_what_plain_peft_computes_for_each(
    load: Callable[..., BaseModel], source: Callable[..., Path], family: str, tied: bool
) -> None:
    base = load(family, tied=tied)
    context = install_lora(base)
    configs = [
        AdapterConfig(1, seed=1),
        AdapterConfig(8, train_unembed=False, seed=2),
        AdapterConfig(32, train_attn=False, seed=3),
        AdapterConfig(4, train_mlp=False, train_attn=False, seed=4),
    ]
    tenants = [
        (perturbed_adapter(base, config), random_tokens(base, (9, 1, 14), seed=index))
        for index, config in enumerate(configs)
    ]
    for (logprobs, gradient), (weights, sequences) in zip(run_tenants(base, context, tenants), tenants, strict=True):
        plain = PlainPeft(source(family, tied=tied), weights.config, weights)
        expected = torch.cat([plain.logprobs(sequence, shifted(sequence)) for sequence in sequences])
        (-expected.sum()).backward()
        torch.testing.assert_close(logprobs, expected.detach(), rtol=0, atol=1e-5)
        reference = {name: tuple(m.grad for m in plain.matrices(name)) for name in weights.linears}
        assert largest_difference(dict(gradient.linears), reference) < 1e-5


def test_alone_and_packed_agree(load: Callable[..., BaseModel]) -> None:
    base = load()
    context = install_lora(base)
    tenants = [
        (perturbed_adapter(base, AdapterConfig(rank, seed=rank)), random_tokens(base, (11, 6), seed=rank))
        for rank in (2, 8, 16)
    ]
    for (packed, packed_gradient), tenant in zip(run_tenants(base, context, tenants), tenants, strict=True):
        ((alone, alone_gradient),) = run_tenants(base, context, [tenant])
        torch.testing.assert_close(packed, alone, rtol=0, atol=2e-6)
        assert largest_difference(dict(packed_gradient.linears), dict(alone_gradient.linears)) < 2e-6


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("sick", [0, 1, 2])
def test_a_nan_adapter_leaves_its_neighbours_bitwise_unchanged(
    load: Callable[..., BaseModel], sick: int, grouped: bool
) -> None:
    base = load()
    context = install_lora(base)
    context.grouped = grouped
    tenants = [
        (perturbed_adapter(base, AdapterConfig(8, seed=index)), random_tokens(base, (7, 12), seed=index))
        for index in range(3)
    ]
    healthy = run_tenants(base, context, tenants)
    tenants[sick][0].flat.fill_(torch.nan)
    beside = run_tenants(base, context, tenants)
    assert beside[sick][0].isnan().all()
    for index in {0, 1, 2} - {sick}:
        assert torch.equal(beside[index][0], healthy[index][0])
        assert torch.equal(beside[index][1].flat, healthy[index][1].flat)


def test_rows_without_an_adapter_are_the_base_model(load: Callable[..., BaseModel]) -> None:
    plain, base = load(), load()
    context = install_lora(base)
    first, second = random_tokens(base, (8, 10))
    weights = perturbed_adapter(base, AdapterConfig(4, seed=0))
    expected = hidden_states(plain, [second])
    with context.segments([Segment(0, 8, weights), Segment(8, 18, None)]):
        hidden = hidden_states(base, [first, second])
    torch.testing.assert_close(hidden[8:], expected, rtol=0, atol=2e-6)
    assert not torch.allclose(hidden[:8], hidden_states(plain, [first]), atol=1e-3)


def test_outside_segments_nothing_is_added(load: Callable[..., BaseModel]) -> None:
    plain, base = load(), load()
    install_lora(base)
    (tokens,) = random_tokens(base, (9,))
    torch.testing.assert_close(hidden_states(base, [tokens]), hidden_states(plain, [tokens]), rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_is_the_identity(load: Callable[..., BaseModel]) -> None:
    base = load()
    context = install_lora(base)
    (tokens,) = random_tokens(base, (9,))
    fresh = init_adapter(base, AdapterConfig(8, seed=0))
    without = target_logprobs(base, hidden_states(base, [tokens]), shifted(tokens)[:, None], None)
    with context.segments([Segment(0, 9, fresh)]):
        hidden = hidden_states(base, [tokens])
    assert torch.equal(target_logprobs(base, hidden, shifted(tokens)[:, None], fresh), without)


def test_a_segment_without_gradient_buffer_gets_none_and_disturbs_none(load: Callable[..., BaseModel]) -> None:
    base = load()
    context = install_lora(base)
    sequences = random_tokens(base, (6, 6))
    asked, spared = (perturbed_adapter(base, AdapterConfig(4, seed=index)) for index in range(2))
    gradient = asked.zeros()
    with context.segments([Segment(0, 6, asked, gradient), Segment(6, 12, spared)]):
        hidden = hidden_states(base, sequences)
        hidden.backward(torch.cat([torch.ones(6, HIDDEN_SIZE), torch.zeros(6, HIDDEN_SIZE)]))
    alone = asked.zeros()
    with context.segments([Segment(0, 6, asked, alone)]):
        hidden_states(base, sequences[:1]).backward(torch.ones(6, HIDDEN_SIZE))
    trunk = {name: pair for name, pair in alone.linears.items() if name != "lm_head"}
    assert largest_difference({name: gradient.linears[name] for name in trunk}, trunk) < 2e-6
