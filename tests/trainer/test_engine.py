"""Passes of the engine: what adds up, what stays apart, and what leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from services.core.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.run_state import RunState
from services.trainer.values import PassResult
from testing.passes import all_logprobs, logprobs_of, run_alone
from testing.training_data import ADAM, datum, random_data, work

CONFIG = AdapterConfig(4, seed=0)


def _trained(engine: LocalTrainerEngine, run: str, config: AdapterConfig = CONFIG) -> RunState:
    """A run that has taken two steps, so that neither B nor the moments are zero."""
    state = engine.create_run(run, config)
    for seed in range(2):
        run_alone(engine, work(run, random_data("cross_entropy", (8, 5), seed=seed)))
        engine.optim_step(run, ADAM)
    return state


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_gradients_of_two_calls_add_up_to_that_of_the_joined_data(engine: LocalTrainerEngine) -> None:
    state = _trained(engine, "run")
    data = random_data("cross_entropy", (9, 4, 13), seed=5)
    run_alone(engine, work("run", data))
    joined = state.gradient.clone()
    state.gradient.zero_()
    run_alone(engine, work("run", data[:1]))
    run_alone(engine, work("run", data[1:]))
    assert _relative(state.gradient, joined) < 2e-6


def test_losses_may_be_mixed_within_one_step(engine: LocalTrainerEngine) -> None:
    state = _trained(engine, "run")
    first = work("run", random_data("cross_entropy", (6,)))
    second = work("run", random_data("importance_sampling", (7,)), "importance_sampling")
    run_alone(engine, first)
    alone = state.gradient.clone()
    run_alone(engine, second)
    both = state.gradient.clone()
    state.gradient.zero_()
    run_alone(engine, second)
    assert _relative(state.gradient, both - alone) < 1e-5


def test_forward_returns_the_same_and_touches_nothing(engine: LocalTrainerEngine) -> None:
    state = _trained(engine, "run")
    data = random_data("importance_sampling", (6, 11))
    before = [vector.clone() for vector in (state.weights.flat, *state.optimizer_vectors().values())]
    forward = run_alone(engine, work("run", data, "importance_sampling", backward=False))
    after = (state.weights.flat, *state.optimizer_vectors().values())
    assert all(torch.equal(was, vector) for was, vector in zip(before, after, strict=True))
    backward = run_alone(engine, work("run", data, "importance_sampling"))
    assert forward.metrics == backward.metrics
    for one, other in zip(logprobs_of(forward), logprobs_of(backward), strict=True):
        assert torch.equal(one, other)


def test_every_position_has_a_logprob_whatever_its_weight(engine: LocalTrainerEngine) -> None:
    _trained(engine, "run")
    tokens, targets = [5, 6, 7, 8], [6, 7, 8, 9]
    some = run_alone(engine, work("run", [datum(tokens, targets, weights=[0, 1, 0, -2])]))
    all_ones = run_alone(engine, work("run", [datum(tokens, targets)]))
    none = run_alone(engine, work("run", [datum(tokens, targets, mask=[0, 0, 0, 0])]))
    assert torch.equal(logprobs_of(some)[0], logprobs_of(all_ones)[0])
    assert torch.equal(logprobs_of(none)[0], logprobs_of(all_ones)[0])
    assert (logprobs_of(all_ones)[0] < 0).all()
    assert none.metrics == {"loss:sum": 0}


def test_data_of_weight_zero_has_no_gradient(engine: LocalTrainerEngine) -> None:
    state = _trained(engine, "run")
    run_alone(engine, work("run", [datum([5, 6], [6, 7], weights=[0, 0])]))
    assert not state.gradient.any()


def test_results_have_the_shape_of_their_own_targets(engine: LocalTrainerEngine) -> None:
    _trained(engine, "run")
    data = random_data("cross_entropy", (4,)) + random_data("cross_entropy", (3, 6), k=3)
    data += random_data("cross_entropy", (2,), k=1)
    mixed = run_alone(engine, work("run", data))
    assert [tuple(item.shape) for item in mixed.logprobs] == [(4,), (3, 3), (6, 3), (2, 1)]
    for item, together in zip(data, logprobs_of(mixed), strict=True):
        (alone,) = logprobs_of(run_alone(engine, work("run", [item])))
        torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    total = sum(run_alone(engine, work("run", [item])).metrics["loss:sum"] for item in data)
    assert mixed.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)


def test_the_token_budget_changes_no_number(load: Callable[..., BaseModel]) -> None:
    results = []
    for row_tokens in (8192, 12, 1):
        engine = LocalTrainerEngine(load(), row_tokens=row_tokens)
        state = _trained(engine, "run")
        outcome = run_alone(engine, work("run", random_data("cross_entropy", (9, 4, 13, 2), seed=5)))
        results.append((all_logprobs(outcome), state.gradient))
    for logprobs, gradient in results[1:]:
        torch.testing.assert_close(logprobs, results[0][0], rtol=0, atol=2e-5)
        assert _relative(gradient, results[0][1]) < 1e-4


def test_jobs_of_several_runs_in_one_pass_get_what_each_gets_alone(engine: LocalTrainerEngine) -> None:
    configs = {"a": AdapterConfig(4, seed=1), "b": AdapterConfig(16, train_unembed=False, seed=2), "c": CONFIG}
    states = {run: _trained(engine, run, config) for run, config in configs.items()}
    jobs = [
        work("a", random_data("cross_entropy", (9, 3), seed=7)),
        work("b", random_data("importance_sampling", (5,), seed=8, k=2), "importance_sampling"),
        work("c", random_data("cross_entropy", (6,), seed=9), backward=False),
    ]
    together = engine.run_pass(jobs)
    gradients = {run: state.gradient.clone() for run, state in states.items()}
    for state in states.values():
        state.gradient.zero_()
    for job, packed in zip(jobs, together, strict=True):
        assert isinstance(packed, PassResult)
        alone = run_alone(engine, job)
        for one, other in zip(logprobs_of(alone), logprobs_of(packed), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
        if job.backward:
            assert _relative(gradients[job.training_run_id], states[job.training_run_id].gradient) < 2e-6
    assert not gradients["c"].any()


def test_a_run_of_nans_fails_alone_and_leaves_the_other_bitwise_unchanged(engine: LocalTrainerEngine) -> None:
    healthy, sick = _trained(engine, "healthy"), _trained(engine, "sick", AdapterConfig(8, seed=3))
    jobs = [work("sick", random_data("cross_entropy", (7,))), work("healthy", random_data("cross_entropy", (5, 9)))]
    (_, expected) = engine.run_pass(jobs)
    gradient = healthy.gradient.clone()
    healthy.gradient.zero_()
    sick.gradient.zero_()
    sick.weights.flat.fill_(torch.nan)
    failure, outcome = engine.run_pass(jobs)
    assert isinstance(failure, FailedPreconditionError)
    assert failure.reason == "NOT_FINITE"
    assert not sick.gradient.any()
    assert isinstance(outcome, PassResult)
    assert isinstance(expected, PassResult)
    assert torch.equal(healthy.gradient, gradient)
    assert outcome.metrics == expected.metrics
    assert torch.equal(all_logprobs(outcome), all_logprobs(expected))


def test_inputs_that_overflow_fail_their_job_and_leave_no_gradient(engine: LocalTrainerEngine) -> None:
    state = _trained(engine, "run")
    run_alone(engine, work("run", random_data("cross_entropy", (5,))))
    before = state.gradient.clone()
    wild = datum([5, 6], [6, 7], logprobs=[-1000, -1], advantages=[1, 1])
    with pytest.raises(InvalidArgumentError, match=r"data: must be .*finite \(got loss -inf"):
        run_alone(engine, work("run", [wild], "importance_sampling"))
    assert torch.equal(state.gradient, before)


def test_same_seed_same_run_and_runs_do_not_influence_each_other(load: Callable[..., BaseModel]) -> None:
    alone, crowded = LocalTrainerEngine(load()), LocalTrainerEngine(load())
    expected = _trained(alone, "run")
    for index in range(3):
        _trained(crowded, f"other-{index}", AdapterConfig(2 + index, seed=index))
    assert torch.equal(_trained(crowded, "run").weights.flat, expected.weights.flat)


def test_an_example_as_long_as_the_context(engine: LocalTrainerEngine) -> None:
    _trained(engine, "run")
    (logprobs,) = run_alone(engine, work("run", random_data("cross_entropy", (128,)))).logprobs
    assert logprobs.shape == (128,)


def test_runs_come_and_go(engine: LocalTrainerEngine) -> None:
    engine.create_run("run", CONFIG)
    with pytest.raises(AlreadyExistsError, match="run"):
        engine.create_run("run", CONFIG)
    engine.drop_run("run")
    engine.drop_run("run")
    with pytest.raises(NotFoundError, match="training run run"):
        run_alone(engine, work("run", random_data("cross_entropy", (3,))))
