"""Losses against closed forms, and the torch functions against the torch-free table."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from services.core.errors import InvalidArgumentError
from services.core.losses import LOSSES
from services.trainer.engine.losses import Loss, LossSegment

P = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.0])
Q = torch.tensor([-1.5, -2.0, -0.1, -1.0, -1.1])
A = torch.tensor([2.0, -1.0, 0.0, 0.5, -3.0])
R = [math.exp(0.5), 1.0, math.exp(-0.4), math.exp(-2.0), math.exp(0.1)]
ONES = torch.ones(5)
POLICY = {"logprobs": Q, "advantages": A, "mask": ONES, "sequence_ratio_mask": ONES}
CLIPPING = ("ppo", "cispo", "gspo")


def resolve_loss(name: str, config: Mapping[str, float]) -> Loss:
    """The loss as a request with this configuration gets it."""
    return Loss(LOSSES[name], LOSSES[name].options(config))


def gradient(loss: Loss, inputs: Mapping[str, Tensor], logprobs: Tensor = P) -> Tensor:
    return loss.gradient(loss.segments(logprobs, inputs, [len(logprobs)]))


def metrics(loss: Loss, inputs: Mapping[str, Tensor], logprobs: Tensor = P) -> dict[str, float]:
    return loss.metrics(loss.segments(logprobs, inputs, [len(logprobs)]))


def test_both_tables_name_the_same_losses() -> None:
    for name, spec in LOSSES.items():
        loss = resolve_loss(name, {})
        assert loss.config == spec.config
        inputs = {key: torch.ones(3) for key in (*spec.required, *spec.optional) if key != "target_tokens"}
        assert loss.elements(LossSegment(-torch.ones(3), inputs)).shape == (3,)


def test_cross_entropy_is_minus_weighted_logprobs() -> None:
    loss = resolve_loss("cross_entropy", {})
    assert metrics(loss, {"weights": A}) == {"loss:sum": pytest.approx(2.0 - 2.0 + 0.0 + 1.5 - 3.0)}
    assert torch.equal(gradient(loss, {"weights": A}), -A)


def _closed_form(loss: str, config: Mapping[str, float]) -> tuple[float, list[float]]:
    """Value and gradient, written out per element without tensors."""
    low, high, beta = (config.get(name, 0.0) for name in ("clip_low_threshold", "clip_high_threshold", "beta"))
    value, gradients = 0.0, []
    mean = sum(float(p - q) for p, q in zip(P, Q, strict=True)) / len(P)
    for p, q, a, r in zip(P.tolist(), Q.tolist(), A.tolist(), R, strict=True):
        if loss == "dro":
            value -= p * a - 0.5 * beta * (p - q) ** 2
            gradients.append(-(a - beta * (p - q)))
            continue
        ratio = math.exp(mean) if loss == "gspo" else r
        clipped = min(max(ratio, low), high)
        if loss == "importance_sampling":
            value, slope = value - ratio * a, ratio * a
        elif loss == "cispo":
            value, slope = value - clipped * p * a, clipped * a
        else:
            value -= min(ratio * a, clipped * a)
            slope = ratio * a if ratio * a <= clipped * a else 0.0
        gradients.append(-slope)
    return value, gradients


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        ("importance_sampling", {}),
        ("ppo", {}),
        ("ppo", {"clip_low_threshold": 0.99, "clip_high_threshold": 1.05}),
        ("cispo", {}),
        ("cispo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.2}),
        ("dro", {}),
        ("dro", {"beta": 0.7}),
        ("gspo", {}),
        ("gspo", {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}),
    ],
)
def test_policy_losses_equal_their_closed_forms(loss: str, config: dict[str, float]) -> None:
    resolved = resolve_loss(loss, config)
    value, slopes = _closed_form(loss, resolved.config)
    assert metrics(resolved, POLICY)["loss:sum"] == pytest.approx(value, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(gradient(resolved, POLICY), torch.tensor(slopes), rtol=1e-6, atol=1e-7)


def _stable_reinforce(p: list[float], q: list[float], a: list[float]) -> tuple[float, list[float]]:
    """Value and gradient at the defaults, written out per element without tensors."""
    trained = [x - y for x, y, advantage in zip(p, q, a, strict=True) if advantage]
    kept = 0.5 <= math.exp(sum(trained) / len(trained)) <= 2.0
    weights = [min(math.exp(min(x - y, 100.0)), 2.0) * kept for x, y in zip(p, q, strict=True)]
    value = -sum(w * x * advantage for w, x, advantage in zip(weights, p, a, strict=True))
    return value, [-w * advantage for w, advantage in zip(weights, a, strict=True)]


@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0, 200.0, -200.0])
def test_stable_reinforce_truncates_ratios_and_leaves_out_data_that_have_been_left(shift: float) -> None:
    loss, inputs = resolve_loss("stable_reinforce", {}), {**POLICY, "logprobs": Q + shift}
    value, slopes = _stable_reinforce(P.tolist(), (Q + shift).tolist(), A.tolist())
    assert metrics(loss, inputs)["loss:sum"] == pytest.approx(value, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(gradient(loss, inputs), torch.tensor(slopes), rtol=1e-6, atol=1e-7)
    assert any(slopes) == (shift == 0.0)


def test_stable_reinforce_truncates_a_token_and_says_how_many() -> None:
    inputs = {**POLICY, "logprobs": P - torch.tensor([3.0, -1.0, 50.0, -1.0, -1.0])}
    found = metrics(resolve_loss("stable_reinforce", {}), inputs)
    assert found["clip_high_fraction:mean"] == 0.25, "one of four; where no advantage is, any logprob may stand"
    assert found["clip_low_fraction:mean"] == 0
    assert gradient(resolve_loss("stable_reinforce", {}), inputs)[0] == -2.0 * A[0]


@pytest.mark.parametrize("loss", ["ppo", "cispo", "gspo"])
def test_thresholds_of_tokens_clip_each_token_by_its_own(loss: str) -> None:
    low, high = torch.tensor([0.9, 1.0, 0.0, 0.5, 0.2]), torch.tensor([1.1, 1.0, 9.0, 2.0, 1.05])
    by_token = gradient(resolve_loss(loss, {}), {**POLICY, "clip_low_threshold": low, "clip_high_threshold": high})
    for index in range(5):
        config = {"clip_low_threshold": float(low[index]), "clip_high_threshold": float(high[index])}
        assert by_token[index] == gradient(resolve_loss(loss, config), POLICY)[index]


def test_stable_reinforce_looks_at_each_datum_for_itself() -> None:
    loss = resolve_loss("stable_reinforce", {})
    inputs = {"logprobs": torch.cat([Q, Q + 5]), "advantages": torch.cat([A, A])}
    both = loss.gradient(loss.segments(torch.cat([P, P]), inputs, [5, 5]))
    assert torch.equal(both[:5], gradient(loss, POLICY))
    assert not both[5:].any()


def test_defaults() -> None:
    assert resolve_loss("ppo", {}).config == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert resolve_loss("cispo", {}).config == {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    assert resolve_loss("dro", {}).config == {"beta": 0.05}
    assert resolve_loss("stable_reinforce", {}).config == {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}
    assert resolve_loss("gspo", {}).config == {"clip_low_threshold": 0.9997, "clip_high_threshold": 1.0004}


@pytest.mark.parametrize(
    ("loss", "config", "refusal"),
    [
        ("ppo", {"beta": 1.0}, r'loss_fn_config\["beta"\]: must be an option of ppo \(clip_high_threshold'),
        ("cross_entropy", {"beta": 1.0}, r"must be an option of cross_entropy \(none\)"),
        ("dro", {"beta": -0.1}, r'loss_fn_config\["beta"\]: must be a finite number, at least 0 \(got -0.1\)'),
        ("dro", {"beta": math.nan}, r"must be a finite number, at least 0 \(got nan\)"),
        ("ppo", {"clip_high_threshold": math.inf}, r"must be a finite number, at least 0 \(got inf\)"),
        (
            "ppo",
            {"clip_low_threshold": 1.3},
            r'clip_low_threshold"\]: must be at most clip_high_threshold = 1.2 \(got 1.3\)',
        ),
        ("ppo", {"clip_high_threshold": 0.5}, r'"clip_high_threshold"\]: must be at least clip_low_threshold = 0.8'),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(loss: str, config: dict[str, float], refusal: str) -> None:
    with pytest.raises(InvalidArgumentError, match=refusal):
        resolve_loss(loss, config)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"cross_entropy"}))
def test_on_policy_the_gradient_is_that_of_weighted_cross_entropy(loss: str) -> None:
    on_policy = gradient(resolve_loss(loss, {}), {**POLICY, "logprobs": P})
    assert torch.equal(on_policy, gradient(resolve_loss("cross_entropy", {}), {"weights": A}))


@pytest.mark.parametrize("loss", ["ppo", "gspo"])
def test_a_fully_clipped_step_has_no_gradient_even_if_the_ratio_overflows(loss: str) -> None:
    for shift, advantage in ((1.0, 2.0), (-1.0, -2.0), (200.0, 2.0)):
        inputs = {**POLICY, "logprobs": P - shift, "advantages": torch.full((5,), advantage)}
        assert not gradient(resolve_loss(loss, {}), inputs).any()
        value = metrics(resolve_loss(loss, {}), inputs)["loss:sum"]
        threshold = resolve_loss(loss, {}).config["clip_high_threshold" if advantage > 0 else "clip_low_threshold"]
        assert value == pytest.approx(-5 * threshold * advantage, rel=1e-6)


def test_gspo_takes_its_ratio_from_its_mask_and_each_datum_for_itself() -> None:
    loss = resolve_loss("gspo", {"clip_low_threshold": 0.0, "clip_high_threshold": 100.0})
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    wild = Q.clone()
    wild[1] = -1e30
    masked = {**POLICY, "logprobs": wild, "sequence_ratio_mask": mask}
    ratio = math.exp((0.5 - 0.4 + 0.1) / 3)
    torch.testing.assert_close(gradient(loss, masked), -ratio * A)
    two = {name: torch.cat([values, POLICY[name]]) for name, values in masked.items()}
    both = loss.gradient(loss.segments(torch.cat([P, P]), two, [5, 5]))
    assert torch.equal(both, torch.cat([gradient(loss, masked), gradient(loss, POLICY)]))
    nowhere = {**POLICY, "sequence_ratio_mask": torch.zeros(5)}
    assert torch.equal(gradient(loss, nowhere), -A)


def test_a_masked_element_of_dro_adds_nothing() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
    loss = resolve_loss("dro", {})
    masked = gradient(loss, {**POLICY, "mask": mask})
    assert torch.equal(masked, gradient(loss, POLICY) * mask)
    assert gradient(loss, POLICY)[1] != 0


def test_metrics_cover_elements_with_an_advantage_only() -> None:
    for loss in ("importance_sampling", "ppo", "cispo"):
        found = metrics(resolve_loss(loss, {}), POLICY)
        moves = [0.5, 0.0, -2.0, 0.1]
        ratios = [math.exp(value) for value in moves]
        assert found["ratio:mean"] == pytest.approx(sum(ratios) / 4, rel=1e-6)
        assert found["ratio:max"] == pytest.approx(max(ratios), rel=1e-6)
        assert found["kl_k1:mean"] == pytest.approx(-sum(moves) / 4, rel=1e-6)
        k3 = sum(ratio - 1 - value for ratio, value in zip(ratios, moves, strict=True)) / 4
        assert found["kl_k3:mean"] == pytest.approx(k3, rel=1e-6)


def test_clip_fractions() -> None:
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}
    ppo = metrics(resolve_loss("ppo", config), POLICY)
    assert (ppo["clip_low_fraction:mean"], ppo["clip_high_fraction:mean"]) == (0.0, 0.25), "r=e^.5 with A>0"
    cispo = metrics(resolve_loss("cispo", config), POLICY)
    assert (cispo["clip_low_fraction:mean"], cispo["clip_high_fraction:mean"]) == (0.25, 0.5), "whatever A's sign"
    sequence = {**POLICY, "logprobs": P - 0.5}
    gspo = metrics(resolve_loss("gspo", config), sequence)
    assert gspo["ratio:mean"] == pytest.approx(math.exp(0.5), rel=1e-6)
    assert gspo["clip_high_fraction:mean"] == pytest.approx(0.5), "where the advantage is positive"


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"cross_entropy"}))
def test_without_anything_to_train_nothing_has_moved(loss: str) -> None:
    nothing = {**POLICY, "advantages": torch.zeros(5), "mask": torch.zeros(5)}
    found = metrics(resolve_loss(loss, {}), nothing)
    assert {name: value for name, value in found.items() if value != 0} == {"ratio:mean": 1, "ratio:max": 1}


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_what_stands_where_no_advantage_is_cannot_spoil_the_rest(loss: str) -> None:
    resolved = resolve_loss(loss, {})
    wild = Q.clone()
    wild[2] = -1e30
    assert metrics(resolved, {**POLICY, "logprobs": wild}) == metrics(resolved, POLICY)
    assert torch.equal(gradient(resolved, {**POLICY, "logprobs": wild}), gradient(resolved, POLICY))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_metric_names_carry_their_reduction(loss: str) -> None:
    for name in metrics(resolve_loss(loss, {}), {**POLICY, "weights": A}):
        assert name.count(":") == 1
        assert name.partition(":")[2] in {"sum", "mean", "min", "max"}
