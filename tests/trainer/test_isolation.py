"""Jobs in one pass: what one of them does wrong stays with it, and running out of memory is survived."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from services.core.errors import FailedPreconditionError, ResourceExhaustedError
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.trainer.engine.isolation import run_isolated
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.losses import Loss, LossSegment
from services.trainer.values import PassResult
from testing.passes import all_logprobs, logprobs_of, run_alone
from testing.training_data import random_data, work
from tests.trainer.memory import small_memory


@pytest.fixture
def crowd(load: Callable[..., BaseModel]) -> LocalTrainerEngine:
    """Eight runs of different ranks."""
    engine = LocalTrainerEngine(load())
    for index in range(8):
        engine.create_run(f"r{index}", AdapterConfig(1 + index, seed=index))
    return engine


def jobs(lengths: tuple[int, ...] = (9, 4)) -> list[Any]:
    losses = ("cross_entropy", "gspo", "ppo", "dro")
    return [
        work(f"r{index}", random_data(losses[index % 4], lengths, seed=index), losses[index % 4]) for index in range(8)
    ]


def gradients(engine: LocalTrainerEngine) -> list[torch.Tensor]:
    found = [engine.run(f"r{index}").gradient.clone() for index in range(8)]
    for index in range(8):
        engine.run(f"r{index}").gradient.zero_()
    return found


def test_among_seven_others_a_job_gets_what_it_gets_alone(crowd: LocalTrainerEngine) -> None:
    together = run_isolated(crowd, jobs())
    packed = gradients(crowd)
    alone = [run_alone(crowd, job) for job in jobs()]
    for mine, lone, one, other in zip(together, alone, packed, gradients(crowd), strict=True):
        assert isinstance(mine, PassResult)
        for left, right in zip(logprobs_of(mine), logprobs_of(lone), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=2e-6)
        assert float((one - other).norm() / other.norm()) < 2e-6


def test_a_job_that_raises_fails_alone_and_changes_no_other(crowd: LocalTrainerEngine) -> None:
    broken = jobs()
    broken[3] = dataclasses.replace(broken[3], training_run_id="nobody")
    outcomes = run_isolated(crowd, broken)
    after = gradients(crowd)
    assert type(outcomes[3]).__name__ == "NotFoundError"
    for index, job in enumerate(jobs()):
        if index != 3:
            expected = run_alone(crowd, job)
            outcome = outcomes[index]
            assert isinstance(outcome, PassResult)
            assert torch.equal(all_logprobs(outcome), all_logprobs(expected))
    for index, (one, other) in enumerate(zip(after, gradients(crowd), strict=True)):
        assert torch.equal(one, other) if index != 3 else not one.any()


def test_a_pass_that_fails_at_its_end_has_changed_nothing(
    crowd: LocalTrainerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss whose metrics raise: every row has run, every scratch gradient is full."""
    broken = jobs()
    lost = random_data("importance_sampling", (5,))
    broken[7] = work("r7", lost, "importance_sampling")
    measure = Loss.metrics

    def failing(loss: Loss, segments: Sequence[LossSegment]) -> dict[str, float]:
        if loss.spec.name == "importance_sampling":
            raise KeyError(loss.spec.name)
        return measure(loss, segments)

    monkeypatch.setattr(Loss, "metrics", failing)
    with pytest.raises(KeyError):
        crowd.run_pass(broken)
    assert not any(gradient.any() for gradient in gradients(crowd))


def test_weights_of_nan_fail_their_own_job_only(crowd: LocalTrainerEngine) -> None:
    expected = run_isolated(crowd, jobs())
    healthy = gradients(crowd)
    crowd.run("r2").weights.flat.fill_(torch.nan)
    outcomes = run_isolated(crowd, jobs())
    assert isinstance(outcomes[2], FailedPreconditionError)
    for index, (one, other) in enumerate(zip(gradients(crowd), healthy, strict=True)):
        assert torch.equal(one, other) if index != 2 else not one.any()
    for index, (outcome, before) in enumerate(zip(outcomes, expected, strict=True)):
        if index != 2:
            assert isinstance(outcome, PassResult)
            assert isinstance(before, PassResult)
            assert outcome.metrics == before.metrics


def test_out_of_memory_makes_passes_smaller_until_they_fit(crowd: LocalTrainerEngine) -> None:
    expected = [run_alone(crowd, job) for job in jobs()]
    gradients(crowd)
    with small_memory(crowd, 30) as rows:
        outcomes = run_isolated(crowd, jobs())
    assert rows[0] == 8 * 13
    assert rows[-1] <= 30
    assert crowd.row_tokens > 30, "jobs that fit alone do not make rows shorter for good"
    for outcome, lone in zip(outcomes, expected, strict=True):
        assert isinstance(outcome, PassResult)
        assert outcome.metrics["loss:sum"] == pytest.approx(lone.metrics["loss:sum"], rel=1e-5)


def test_what_has_run_out_of_memory_once_is_not_tried_again(crowd: LocalTrainerEngine) -> None:
    with small_memory(crowd, 30) as rows:
        first = run_isolated(crowd, jobs())
        assert max(rows) > 30
        rows.clear()
        again = run_isolated(crowd, jobs())
        assert max(rows) <= 30
    assert len(rows) < len(jobs()), "and jobs still share rows"
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, PassResult)
        assert isinstance(other, PassResult)
        assert torch.equal(all_logprobs(one), all_logprobs(other))


def test_a_job_that_does_not_fit_costs_the_passes_of_others_little(crowd: LocalTrainerEngine) -> None:
    hopeless = work("r0", random_data("cross_entropy", (60,)))
    with small_memory(crowd, 50) as rows:
        for _ in range(3):
            (outcome,) = run_isolated(crowd, [hopeless])
            assert isinstance(outcome, ResourceExhaustedError)
        rows.clear()
        assert all(isinstance(outcome, PassResult) for outcome in run_isolated(crowd, jobs()[1:]))
    assert len(rows) < len(jobs()) - 1, "rows are shared as before"


def test_a_job_with_long_rows_gets_shorter_ones_and_keeps_them(crowd: LocalTrainerEngine) -> None:
    long = work("r0", random_data("cross_entropy", (9,) * 8))
    expected = run_alone(crowd, long)
    reference = gradients(crowd)[0]
    with small_memory(crowd, 20):
        (outcome,) = run_isolated(crowd, [long])
        assert isinstance(outcome, PassResult)
        assert outcome.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
        gradient = gradients(crowd)[0]
        assert float((gradient - reference).norm() / reference.norm()) < 2e-6, "nothing was counted twice"
        assert crowd.row_tokens == 18
        run_alone(crowd, long)


def test_a_job_that_does_not_fit_alone_fails_alone_by_name(crowd: LocalTrainerEngine) -> None:
    mixed = jobs()
    mixed[5] = work("r5", random_data("cross_entropy", (60, 3)))
    with small_memory(crowd, 50):
        outcomes = run_isolated(crowd, mixed)
    assert isinstance(outcomes[5], ResourceExhaustedError)
    assert outcomes[5].reason == "OUT_OF_MEMORY"
    assert "60 tokens" in outcomes[5].message
    assert all(isinstance(outcome, PassResult) for index, outcome in enumerate(outcomes) if index != 5)
    assert crowd.row_tokens > 50
    for index, gradient in enumerate(gradients(crowd)):
        assert bool(gradient.any()) == (index != 5)
