"""Losses against closed forms, and the torch functions against the torch-free table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from services.core.losses import LOSSES
from services.trainer.losses import resolve_loss

P = torch.tensor([-1.0, -2.0, -0.5, -3.0])
Q = torch.tensor([-1.5, -2.0, -0.1, -1.0])
A = torch.tensor([2.0, -1.0, 0.0, 0.5])


def _gradient_by_differences(loss: str, inputs: dict[str, Tensor]) -> Tensor:
    step = 1e-5
    resolved = resolve_loss(loss, {})
    wide = {name: values.double() for name, values in inputs.items()}
    rows = []
    for index in range(len(P)):
        shift = torch.zeros(len(P), dtype=torch.float64)
        shift[index] = step
        up, down = (resolved.elements(P.double() + sign * shift, wide, {}).sum() for sign in (1, -1))
        rows.append((up - down) / (2 * step))
    return torch.stack(rows).float()


def test_both_tables_name_the_same_losses() -> None:
    for name, spec in LOSSES.items():
        loss = resolve_loss(name, {})
        assert loss.config == spec.config
        inputs = {key: torch.ones(3) for key in (*spec.required, spec.factor) if key != "target_tokens"}
        assert loss.elements(-torch.ones(3), inputs, loss.config).shape == (3,)


def test_cross_entropy_is_minus_weighted_logprobs() -> None:
    loss = resolve_loss("cross_entropy", {})
    assert loss.metrics(P, {"weights": A}) == {"loss:sum": pytest.approx(2.0 - 2.0 + 0.0 + 1.5)}
    assert torch.equal(loss.gradient(P, {"weights": A}), -A)


def test_importance_sampling_is_minus_ratio_times_advantage() -> None:
    loss = resolve_loss("importance_sampling", {})
    inputs = {"logprobs": Q, "advantages": A}
    expected = -(2 * math.exp(0.5) - 1 * math.exp(0.0) + 0.5 * math.exp(-2.0))
    assert loss.metrics(P, inputs)["loss:sum"] == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(loss.gradient(P, inputs), -(P - Q).exp() * A)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_gradients_equal_differences(loss: str) -> None:
    inputs = {"logprobs": Q, "advantages": A, "weights": A}
    torch.testing.assert_close(
        resolve_loss(loss, {}).gradient(P, inputs), _gradient_by_differences(loss, inputs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"cross_entropy"}))
def test_on_policy_the_gradient_is_that_of_cross_entropy_weighted_by_advantages(loss: str) -> None:
    on_policy = resolve_loss(loss, {}).gradient(P, {"logprobs": P, "advantages": A})
    assert torch.equal(on_policy, resolve_loss("cross_entropy", {}).gradient(P, {"weights": A}))


def test_ratio_metrics_cover_elements_with_an_advantage_only() -> None:
    metrics = resolve_loss("importance_sampling", {}).metrics(P, {"logprobs": Q, "advantages": A})
    log_ratios = [0.5, 0.0, -2.0]
    ratios = [math.exp(value) for value in log_ratios]
    assert metrics["ratio:mean"] == pytest.approx(sum(ratios) / 3, rel=1e-6)
    assert metrics["ratio:max"] == pytest.approx(max(ratios), rel=1e-6)
    assert metrics["kl_k1:mean"] == pytest.approx(-sum(log_ratios) / 3, rel=1e-6)
    k3 = sum(ratio - 1 - value for ratio, value in zip(ratios, log_ratios, strict=True)) / 3
    assert metrics["kl_k3:mean"] == pytest.approx(k3, rel=1e-6)


def test_without_any_advantage_nothing_has_moved() -> None:
    metrics = resolve_loss("importance_sampling", {}).metrics(P, {"logprobs": Q, "advantages": torch.zeros(4)})
    assert metrics == {"loss:sum": 0, "ratio:mean": 1, "ratio:max": 1, "kl_k1:mean": 0, "kl_k3:mean": 0}


def test_what_stands_where_no_advantage_is_cannot_spoil_the_rest() -> None:
    loss = resolve_loss("importance_sampling", {})
    wild = torch.tensor([-1.5, -2.0, -1e30, -1.0])
    assert loss.metrics(P, {"logprobs": wild, "advantages": A}) == loss.metrics(P, {"logprobs": Q, "advantages": A})
    assert torch.equal(
        loss.gradient(P, {"logprobs": wild, "advantages": A}), loss.gradient(P, {"logprobs": Q, "advantages": A})
    )


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_metric_names_carry_their_reduction(loss: str) -> None:
    for name in resolve_loss(loss, {}).metrics(P, {"logprobs": Q, "advantages": A, "weights": A}):
        assert name.count(":") == 1
        assert name.partition(":")[2] in {"sum", "mean", "min", "max"}
