"""Training with the engine against plain PEFT with torch.optim.AdamW: same data, same seed, same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.core.losses import LOSSES
from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import AdamParams, Example, PassResult
from testing.passes import logprobs_of, run_alone
from testing.plain_peft import PlainPeft, largest_difference
from testing.training_data import ADAM, random_data, torch_adamw, work

STEPS = 4
LENGTHS = (9, 1, 17)


def _reference_loss(loss: str, logprobs: Tensor, example: Example) -> Tensor:
    """The formulas of the API, written out once more."""
    inputs = {name: torch.from_numpy(values.reshape(logprobs.shape)) for name, values in example.inputs.items()}
    if loss == "cross_entropy":
        return -(logprobs * inputs["weights"]).sum()
    config, advantages, behaviour = LOSSES[loss].config, inputs["advantages"], inputs["logprobs"]
    ratio = (logprobs - behaviour).exp()
    if loss == "dro":
        quadratic = 0.5 * config["beta"] * (logprobs - behaviour) ** 2
        return -((logprobs * advantages - quadratic) * inputs["mask"]).sum()
    if loss == "gspo":
        counted = inputs["sequence_ratio_mask"] != 0
        sequence = (logprobs.detach() - behaviour)[counted].mean().exp() if counted.any() else torch.ones(())
        ratio = sequence * (logprobs - logprobs.detach()).exp()
    if loss == "stable_reinforce":
        trained = advantages != 0
        mean = (logprobs.detach() - behaviour)[trained].mean().exp() if trained.any() else torch.ones(())
        kept = float(config["clip_low_threshold"] <= mean <= config["clip_high_threshold"])
        return -(kept * ratio.clamp(max=config["clip_high_threshold"]).detach() * logprobs * advantages).sum()
    if loss == "importance_sampling":
        return -(ratio * advantages).sum()
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    if loss == "cispo":
        return -(clipped.detach() * logprobs * advantages).sum()
    return -torch.minimum(ratio * advantages, clipped * advantages).sum()


def _reference_step(plain: PlainPeft, loss: str, examples: Sequence[Example]) -> tuple[float, list[Tensor]]:
    """Adds gradients to PEFT's parameters; returns the loss and the logprobs."""
    total, all_logprobs = 0.0, []
    for example in examples:
        logprobs = plain.logprobs(example.tokens.tolist(), torch.from_numpy(example.targets.reshape(example.shape)))
        value = _reference_loss(loss, logprobs, example)
        value.backward()
        total += float(value.detach())
        all_logprobs.append(logprobs.detach())
    return total, all_logprobs


def _assert_same(outcome: PassResult, loss: float, logprobs: Sequence[Tensor]) -> None:
    assert outcome.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5, abs=1e-4)
    for actual, expected in zip(logprobs_of(outcome), logprobs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def _shaped_gradient(engine: LocalTrainerEngine, run: str) -> dict[str, tuple[Tensor, Tensor]]:
    state = engine.run(run)
    return dict(AdapterWeights(state.config, state.weights.layout, state.gradient).linears)


def _train_both(
    engine: LocalTrainerEngine, plain: PlainPeft, loss: str, params: AdamParams, k: int | None = None
) -> None:
    """Takes steps on both sides and compares everything that can be seen after each."""
    optimizer = torch_adamw(plain.parameters(), params)
    for step in range(STEPS):
        job = work("run", random_data(loss, LENGTHS, seed=step, k=k), loss)
        outcome = run_alone(engine, job)
        _assert_same(outcome, *_reference_step(plain, loss, job.examples))
        gradients = {name: tuple(m.grad for m in plain.matrices(name)) for name in engine.run("run").weights.linears}
        assert largest_difference(_shaped_gradient(engine, "run"), gradients) < 1e-5
        limit = params.grad_clip_norm if params.grad_clip_norm > 0 else torch.inf
        expected_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), limit)
        assert engine.optim_step("run", params) == pytest.approx(float(expected_norm), rel=1e-5)
        optimizer.step()
        optimizer.zero_grad()
    final = work("run", random_data(loss, LENGTHS, seed=STEPS, k=k), loss, backward=False)
    with torch.no_grad():
        expected = [
            plain.logprobs(item.tokens.tolist(), torch.from_numpy(item.targets.reshape(item.shape)))
            for item in final.examples
        ]
    for actual, wanted in zip(logprobs_of(run_alone(engine, final)), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train_unembed", [True, False])
def test_several_steps_equal_plain_peft_and_adamw(
    load: Callable[..., BaseModel], source: Callable[..., Path], family: str, tied: bool, train_unembed: bool
) -> None:
    config = AdapterConfig(8, train_unembed=train_unembed, seed=7)
    engine = LocalTrainerEngine(load(family, tied=tied))
    engine.create_run("run", config)
    _train_both(engine, PlainPeft(source(family, tied=tied), config), "cross_entropy", ADAM)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train_unembed", [True, False])
def test_each_step_on_a_model_with_linear_attention_equals_plain_peft(
    load: Callable[..., BaseModel], source: Callable[..., Path], tied: bool, train_unembed: bool
) -> None:
    """Each step from the same weights: AdamW makes whole steps of what rounding leaves of a gradient near zero."""
    config = AdapterConfig(8, train_unembed=train_unembed, seed=7)
    engine, plain = LocalTrainerEngine(load("qwen3_5", tied=tied)), PlainPeft(source("qwen3_5", tied=tied), config)
    run = engine.create_run("run", config)
    for step in range(STEPS):
        plain.set_weights(run.weights)
        plain.model.zero_grad()
        job = work("run", random_data("cross_entropy", LENGTHS, seed=step))
        _assert_same(run_alone(engine, job), *_reference_step(plain, "cross_entropy", job.examples))
        gradients = {name: tuple(m.grad for m in plain.matrices(name)) for name in run.weights.linears}
        assert largest_difference(_shaped_gradient(engine, "run"), gradients) < 1e-5
        engine.optim_step("run", ADAM)


@pytest.mark.parametrize("rank", [1, 3, 32])
def test_any_rank(load: Callable[..., BaseModel], source: Callable[..., Path], rank: int) -> None:
    config = AdapterConfig(rank, seed=rank)
    engine = LocalTrainerEngine(load())
    engine.create_run("run", config)
    _train_both(engine, PlainPeft(source(), config), "cross_entropy", ADAM)


@pytest.mark.parametrize(
    "options",
    [
        {"train_attn": False},
        {"train_mlp": False},
        {"train_attn": False, "train_mlp": False},
        {"target_modules": ("v_proj", "up_proj", "lm_head")},
        {"alpha": 7, "use_rslora": True},
        {
            "alpha": 5.66,
            "use_rslora": True,
            "target_modules": ("lm_head", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
            "rank_pattern": {"model.layers.1.self_attn.q_proj": 7, "lm_head": 1},
            "alpha_pattern": {"model.layers.1.mlp.down_proj": 0.9, "lm_head": -3},
        },
    ],
    ids=str,
)
def test_any_choice_of_linears_and_scale(
    load: Callable[..., BaseModel], source: Callable[..., Path], options: dict[str, Any]
) -> None:
    config = AdapterConfig(4, seed=1, **options)
    engine = LocalTrainerEngine(load())
    engine.create_run("run", config)
    _train_both(engine, PlainPeft(source(), config), "cross_entropy", ADAM)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_and_several_targets_a_position(
    load: Callable[..., BaseModel], source: Callable[..., Path], loss: str, k: int | None
) -> None:
    config = AdapterConfig(4, seed=1)
    engine = LocalTrainerEngine(load())
    engine.create_run("run", config)
    _train_both(engine, PlainPeft(source(), config), loss, ADAM, k)


def test_clipping_and_rows_split_by_the_token_budget(
    load: Callable[..., BaseModel], source: Callable[..., Path]
) -> None:
    config = AdapterConfig(4, seed=1)
    engine = LocalTrainerEngine(load(), row_tokens=10)
    engine.create_run("run", config)
    _train_both(engine, PlainPeft(source(), config), "cross_entropy", dataclasses.replace(ADAM, grad_clip_norm=0.5))
