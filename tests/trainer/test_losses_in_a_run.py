"""Losses through the whole engine: what holds between them holds for the gradients of a run's adapter too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from services.core.losses import LOSSES
from services.model.adapter_config import AdapterConfig
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.run_state import RunState
from testing.passes import logprobs_of, run_alone
from testing.training_data import ADAM, datum, random_data, work
from tinker_proto.v1 import data_pb2

LENGTHS = (9, 1, 14)
POLICY_LOSSES = sorted(set(LOSSES) - {"cross_entropy"})


@pytest.fixture
def run(engine: LocalTrainerEngine) -> RunState:
    """A run that has taken a step, so that every part of its adapter has a gradient."""
    state = engine.create_run("run", AdapterConfig(4, seed=0))
    run_alone(engine, work("run", random_data("cross_entropy", (8, 5))))
    engine.optim_step("run", ADAM)
    return state


def tokens_and_targets() -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(3)
    return [(random.integers(3, 89, n).tolist(), random.integers(3, 89, n).tolist()) for n in LENGTHS]


def policy_data(behaviour: Sequence[Tensor], advantages: Sequence[Sequence[float]]) -> list[data_pb2.Datum]:
    return [
        datum(tokens, targets, logprobs=q.tolist(), advantages=a)
        for (tokens, targets), q, a in zip(tokens_and_targets(), behaviour, advantages, strict=True)
    ]


def current_logprobs(engine: LocalTrainerEngine) -> list[Tensor]:
    data = [datum(tokens, targets) for tokens, targets in tokens_and_targets()]
    return logprobs_of(run_alone(engine, work("run", data, backward=False)))


def gradient_of(engine: LocalTrainerEngine, data: list[data_pb2.Datum], loss: str) -> Tensor:
    state = engine.run("run")
    state.gradient.zero_()
    run_alone(engine, work("run", data, loss))
    return state.gradient.clone()


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_on_policy_every_loss_has_the_gradient_of_weighted_cross_entropy(
    engine: LocalTrainerEngine, run: RunState, loss: str
) -> None:
    random = np.random.default_rng(5)
    advantages = [random.normal(size=n).tolist() for n in LENGTHS]
    weighted = [datum(*pair, weights=a) for pair, a in zip(tokens_and_targets(), advantages, strict=True)]
    expected = gradient_of(engine, weighted, "cross_entropy")
    on_policy = gradient_of(engine, policy_data(current_logprobs(engine), advantages), loss)
    assert expected.norm() > 0.1
    assert float((on_policy - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("loss", ["ppo", "gspo"])
@pytest.mark.parametrize(("shift", "advantage"), [(-1.0, 2.0), (1.0, -2.0)], ids=["above", "below"])
def test_a_step_in_which_everything_is_clipped_changes_nothing(
    engine: LocalTrainerEngine, run: RunState, loss: str, shift: float, advantage: float
) -> None:
    """With fresh moments: an optimizer that has momentum moves on by itself."""
    run.reset_optimizer()
    behaviour = [logprobs + shift for logprobs in current_logprobs(engine)]
    data = policy_data(behaviour, [[advantage] * n for n in LENGTHS])
    before = run.weights.flat.clone()
    outcome = run_alone(engine, work("run", data, loss))
    side = "high" if advantage > 0 else "low"
    assert outcome.metrics[f"clip_{side}_fraction:mean"] == 1
    assert not run.gradient.any()
    assert engine.optim_step("run", dataclasses.replace(ADAM, weight_decay=0.0)) == 0
    assert torch.equal(run.weights.flat, before)


@pytest.mark.parametrize("k", [3, 5])
def test_sparse_weights_have_the_gradient_of_the_same_dense_ones(
    engine: LocalTrainerEngine, run: RunState, k: int
) -> None:
    random = np.random.default_rng(k)
    dense_data, sparse_data = [], []
    for n in LENGTHS:
        tokens, targets = random.integers(3, 89, n).tolist(), random.integers(3, 89, (n, k))
        weights = (random.normal(size=(n, k)) * random.integers(0, 2, size=(n, k))).astype(np.float32)
        dense_data.append(datum(tokens, targets, weights=weights))
        sparse_data.append(datum(tokens, targets))
        sparse_data[-1].loss_fn_inputs["weights"].CopyFrom(compressed(weights))
    assert torch.equal(
        gradient_of(engine, sparse_data, "cross_entropy"), gradient_of(engine, dense_data, "cross_entropy")
    )


def compressed(matrix: np.ndarray) -> data_pb2.Tensor:
    """The same matrix in compressed sparse rows."""
    rows, columns = matrix.nonzero()
    ends = np.searchsorted(rows, np.arange(len(matrix) + 1))
    return data_pb2.Tensor(
        dtype=data_pb2.DATA_TYPE_FLOAT32,
        shape=matrix.shape,
        csr=data_pb2.SparseCsr(
            values=matrix[rows, columns].astype("<f4").tobytes(),
            crow_indices=ends.astype("<i8").tobytes(),
            col_indices=columns.astype("<i8").tobytes(),
        ),
    )
