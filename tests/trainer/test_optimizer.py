"""The flat AdamW against torch.optim.AdamW over separate matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from services.core.errors import FailedPreconditionError
from services.model.adapter_config import AdapterConfig
from services.model.adapters import init_adapter
from services.model.base import BaseModel
from services.trainer.engine.optimizer import adamw_step, global_norm
from services.trainer.engine.run_state import RunState
from testing.training_data import ADAM, torch_adamw


@pytest.fixture
def state(load: Callable[..., BaseModel]) -> RunState:
    return RunState(init_adapter(load(), AdapterConfig(4, seed=0)))


def _gradient(state: RunState, seed: int) -> torch.Tensor:
    return torch.randn(state.gradient.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weight_decay": 0.0},
        {"eps": 1e-12},
        {"beta1": 0.0, "beta2": 0.0},
        {"grad_clip_norm": 0.3},
        {"grad_clip_norm": 1e9},
        {"grad_clip_norm": -1.0},
        {"learning_rate": 0.0},
    ],
    ids=str,
)
def test_steps_equal_torchs(state: RunState, change: dict[str, float]) -> None:
    params = dataclasses.replace(ADAM, **change)
    reference = [matrix.clone().requires_grad_() for pair in state.weights.linears.values() for matrix in pair]
    optimizer = torch_adamw(reference, params)
    for step in range(5):
        params = dataclasses.replace(params, learning_rate=params.learning_rate * 0.7)
        optimizer.param_groups[0]["lr"] = params.learning_rate
        state.gradient.copy_(_gradient(state, step))
        start = 0
        for matrix in reference:
            matrix.grad = state.gradient[start : start + matrix.numel()].view_as(matrix).clone()
            start += matrix.numel()
        norm = torch.nn.utils.clip_grad_norm_(
            reference, params.grad_clip_norm if params.grad_clip_norm > 0 else torch.inf
        )
        optimizer.step()
        assert adamw_step(state, params) == pytest.approx(float(norm), rel=1e-5)
        expected = torch.cat([matrix.detach().reshape(-1) for matrix in reference])
        torch.testing.assert_close(state.weights.flat, expected, rtol=1e-5, atol=1e-7)
    assert state.step == 5


def test_a_step_clears_the_gradient(state: RunState) -> None:
    state.gradient.copy_(_gradient(state, 0))
    adamw_step(state, ADAM)
    assert not state.gradient.any()


def test_a_step_without_gradient_moves_by_momentum(state: RunState) -> None:
    state.gradient.copy_(_gradient(state, 0))
    adamw_step(state, ADAM)
    before, moment = state.weights.flat.clone(), state.exp_avg.clone()
    assert adamw_step(state, ADAM) == 0.0
    assert not torch.equal(before, state.weights.flat)
    torch.testing.assert_close(state.exp_avg, ADAM.beta1 * moment)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 3e38])
def test_a_step_that_meets_a_gradient_which_is_not_finite_changes_nothing(state: RunState, poison: float) -> None:
    state.gradient.copy_(_gradient(state, 0))
    adamw_step(state, ADAM)
    state.gradient[7] = poison
    before = state.buffer.clone()
    with pytest.raises(FailedPreconditionError, match="not taken") as refused:
        adamw_step(state, ADAM)
    assert refused.value.reason == "NOT_FINITE"
    assert torch.equal(state.buffer.nan_to_num(123.0), before.nan_to_num(123.0))
    assert state.step == 1


@pytest.mark.parametrize("change", [{"learning_rate": 1e39}, {"learning_rate": 1e30, "weight_decay": 1e30}], ids=str)
def test_a_step_to_weights_that_are_not_finite_changes_nothing(state: RunState, change: dict[str, float]) -> None:
    state.gradient.copy_(_gradient(state, 0))
    adamw_step(state, ADAM)
    state.gradient.copy_(_gradient(state, 1))
    before = state.buffer.clone()
    with pytest.raises(FailedPreconditionError, match="smaller learning_rate") as refused:
        adamw_step(state, dataclasses.replace(ADAM, **change, beta1=0.0, grad_clip_norm=1.0))
    assert refused.value.reason == "NOT_FINITE"
    assert torch.equal(state.buffer, before)
    assert state.step == 1


def test_the_norm_of_a_large_buffer_is_accurate() -> None:
    values = torch.rand(20_000_000, generator=torch.Generator().manual_seed(0))
    exact = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    assert global_norm(values) == pytest.approx(exact, rel=1e-6)


def test_a_denominator_that_float32_cannot_hold_is_no_step(state: RunState) -> None:
    """Nothing has moved yet and eps is 0 in float32: 0 / 0."""
    before = state.buffer.clone()
    with pytest.raises(FailedPreconditionError, match="not taken"):
        adamw_step(state, dataclasses.replace(ADAM, eps=1e-60))
    assert torch.equal(state.buffer, before)


def test_moments_that_would_overflow_are_no_step(state: RunState) -> None:
    state.gradient.fill_(1e17)
    adamw_step(state, dataclasses.replace(ADAM, weight_decay=0.0))
    state.exp_avg_sq.fill_(3.4e38)
    state.gradient.fill_(1e18)
    state.exp_avg.fill_(3e38)
    before = state.buffer.clone()
    with pytest.raises(FailedPreconditionError, match="not taken"):
        adamw_step(state, dataclasses.replace(ADAM, learning_rate=1e30))
    assert torch.equal(state.buffer, before)
