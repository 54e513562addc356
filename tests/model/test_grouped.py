"""Adapters in grouped products: what they compute one after another.

On the CPU, where a grouped product is exact in float32; the engines use them on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.lora import LoraContext, Segment, install_lora
from services.model.recompute import Recompute
from testing.plain_peft import PlainPeft, largest_difference
from testing.rows import perturbed_adapter, random_tokens
from tests.model.tenants import run_tenants, shifted

Tenants = list[tuple[AdapterWeights, list[list[int]]]]


def grouped(base: BaseModel) -> LoraContext:
    context = install_lora(base)
    context.grouped = True
    return context


def tenants_of(base: BaseModel, *configs: AdapterConfig) -> Tenants:
    return [
        (perturbed_adapter(base, config), random_tokens(base, (9, 1, 14), seed=index))
        for index, config in enumerate(configs)
    ]


ONE_LAYER = {"target_modules": ("lm_head", "model.layers.1.self_attn.q_proj"), "alpha": 0.3}


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("options", [{}, {"train_mlp": False}, {"train_unembed": False, "alpha": 5}, ONE_LAYER])
def test_adapters_of_one_shape_get_what_plain_peft_computes_for_each(
    load: Callable[..., BaseModel], source: Callable[..., Path], options: dict[str, Any], recomputes: bool
) -> None:
    base = load()
    context = grouped(base)
    Recompute(base).on = recomputes
    tenants = tenants_of(base, *(AdapterConfig(8, seed=seed, **options) for seed in range(3)))
    for (logprobs, gradient), (weights, sequences) in zip(run_tenants(base, context, tenants), tenants, strict=True):
        plain = PlainPeft(source(), weights.config, weights)
        expected = torch.cat([plain.logprobs(sequence, shifted(sequence)) for sequence in sequences])
        (-expected.sum()).backward()
        torch.testing.assert_close(logprobs, expected.detach(), rtol=0, atol=1e-5)
        reference = {name: tuple(m.grad for m in plain.matrices(name)) for name in weights.linears}
        assert largest_difference(dict(gradient.linears), reference) < 1e-5


def test_only_segments_that_fit_together_are_grouped(load: Callable[..., BaseModel]) -> None:
    base = load()
    context = grouped(base)
    one, other = (perturbed_adapter(base, AdapterConfig(8, seed=seed)) for seed in range(2))
    thin, small = (perturbed_adapter(base, AdapterConfig(rank, seed=0)) for rank in (4, 16))
    uneven = perturbed_adapter(base, AdapterConfig(8, alpha_pattern={"lm_head": 3}, seed=0))

    def is_grouped(*segments: Segment) -> bool:
        with context.segments(segments):
            return context.group is not None

    assert is_grouped(Segment(0, 3, one), Segment(3, 9, other))
    assert is_grouped(Segment(0, 3, one, one.zeros()), Segment(3, 9, other, other.zeros()))
    assert not is_grouped(Segment(0, 3, one), Segment(3, 9, None))
    assert not is_grouped(Segment(0, 3, one), Segment(4, 9, other))
    assert not is_grouped(Segment(0, 3, one))
    assert not is_grouped(Segment(0, 3, one), Segment(3, 9, small))
    assert not is_grouped(Segment(0, 3, thin), Segment(3, 9, thin))
    assert not is_grouped(Segment(0, 3, one, one.zeros()), Segment(3, 9, other))
    assert not is_grouped(Segment(0, 3, uneven), Segment(3, 9, uneven))
    context.grouped = False
    assert not is_grouped(Segment(0, 3, one), Segment(3, 9, other))
