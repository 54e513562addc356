"""Mistakes that are easy to make with packed rows and adapters, and that show as wrong numbers, not as errors.

Others have tests where they belong: a NaN that spreads through a mask (test_lora.py, test_attention.py and the
trainer's test_engine.py), sequences that mix in linear attention (test_linear_attention.py), and weights of the base
model that PEFT adds to an adapter's file (test_adapter_files.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from services.model.adapter_config import AdapterConfig
from services.model.adapters import peft_config
from services.model.base import BaseModel
from services.model.families import SUPPORTED_FAMILIES
from services.model.lora import Segment, install_lora
from services.trainer.engine.local import LocalTrainerEngine
from testing.passes import run_alone
from testing.plain_peft import largest_difference
from testing.rows import hidden_states, perturbed_adapter, random_tokens
from testing.training_data import random_data, work


def test_use_cache_is_off_though_the_base_model_asks_for_it(load: Callable[..., BaseModel]) -> None:
    """A cache makes transformers drop what tells packed sequences apart, and keeps every key and value."""
    base = load()
    seen: list[tuple[bool, Any]] = []
    base.trunk.register_forward_hook(
        lambda _, arguments, options, output: seen.append((options["use_cache"], output.past_key_values)),
        with_kwargs=True,
    )
    engine = LocalTrainerEngine(base)
    engine.create_run("run", AdapterConfig(2, seed=0))
    for backward in (True, False):
        run_alone(engine, work("run", random_data("cross_entropy", (5, 3)), backward=backward))
    assert base.config.use_cache
    assert len(seen) >= 2
    assert set(seen) == {(False, None)}


class Router(nn.Module):
    """The linears of one layer with experts, by the names that transformers gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict(
            {
                "gate": nn.Linear(8, 4, bias=False),
                "router": nn.Linear(8, 4, bias=False),
                "shared_expert_gate": nn.Linear(8, 1, bias=False),
                "gate_proj": nn.Linear(8, 8, bias=False),
            }
        )


def adapted(config: LoraConfig) -> set[str]:
    injected = inject_adapter_in_model(config, Router())
    return {name.removesuffix(".lora_A") for name, _ in injected.named_modules() if name.endswith(".lora_A")}


def test_a_router_is_never_adapted() -> None:
    assert adapted(peft_config(AdapterConfig(2, seed=0), "any", SUPPORTED_FAMILIES["llama"])) == {"mlp.gate_proj"}
    everything = adapted(LoraConfig(r=2, target_modules="all-linear"))
    assert "mlp.gate" in everything, "the short way to say it would"


def test_a_gradient_of_stride_zero_is_like_any_other(load: Callable[..., BaseModel]) -> None:
    """What `.sum().backward()` sends: one number seen through the whole shape."""
    base = load()
    context = install_lora(base)
    weights = perturbed_adapter(base, AdapterConfig(4, seed=1))
    gradients = []
    for send in (lambda hidden: hidden.sum().backward(), lambda hidden: hidden.backward(torch.ones_like(hidden))):
        gradients.append(weights.zeros())
        with context.segments([Segment(0, 9, weights, gradients[-1])]):
            send(hidden_states(base, random_tokens(base, (9,))))
    trunk = [{name: own.linears[name] for name in own.linears if name != "lm_head"} for own in gradients]
    assert all(bool(a.any()) and bool(b.any()) for a, b in trunk[0].values())
    assert largest_difference(*trunk) == 0
