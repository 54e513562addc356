"""forward_backward_custom against plain PEFT: DPO differentiated by autograd straight through the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from testing.passes import logprobs_of, run_alone
from testing.plain_peft import PlainPeft, largest_difference
from testing.training_data import ADAM, datum, work
from tinker_client._torch import differentiate

BETA = 0.3
PROMPT = 4
CONFIG = AdapterConfig(4, seed=6)
PAIRS = 3


def pairs() -> list[tuple[list[int], list[int]]]:
    """Chosen and rejected, chosen and rejected, ...: tokens and targets, with one prompt for each pair."""
    random = np.random.default_rng(2)
    sequences = []
    for pair in range(PAIRS):
        prompt = random.integers(3, 89, PROMPT).tolist()
        for length in (5 + pair, 3):
            tokens = prompt + random.integers(3, 89, length).tolist()
            sequences.append((tokens[:-1], tokens[1:]))
    return sequences


def dpo(logprobs: Sequence[Tensor], reference: Sequence[float]) -> Tensor:
    """Mean of -log sigmoid(beta * margin) (Rafailov et al., "Direct Preference Optimization", 2023, eq. 7)."""
    gains = [own[PROMPT - 1 :].sum() - before for own, before in zip(logprobs, reference, strict=True)]
    margins = torch.stack([chosen - rejected for chosen, rejected in zip(gains[::2], gains[1::2], strict=True)])
    return -F.logsigmoid(BETA * margins).mean()


def test_dpo_through_weights_of_cross_entropy_is_dpo_by_autograd(
    load: Callable[..., BaseModel], source: Callable[..., Path]
) -> None:
    engine, plain = LocalTrainerEngine(load()), PlainPeft(source(), CONFIG)
    run = engine.create_run("run", CONFIG)
    data = [datum(*pair) for pair in pairs()]
    first = logprobs_of(run_alone(engine, work("run", data, backward=False)))
    reference = [float(logprobs[PROMPT - 1 :].sum()) for logprobs in first]
    losses = []
    for _ in range(5):
        plain.set_weights(run.weights)
        forward = logprobs_of(run_alone(engine, work("run", data, backward=False)))
        weights, metrics = differentiate(
            data, [logprobs.numpy() for logprobs in forward], lambda _, logprobs: (dpo(logprobs, reference), {})
        )
        run_alone(engine, work("run", [datum(*pair, weights=own) for pair, own in zip(pairs(), weights, strict=True)]))
        losses.append(metrics["loss:sum"])

        expected = dpo([plain.logprobs(tokens, torch.tensor(targets)) for tokens, targets in pairs()], reference)
        expected.backward()
        assert abs(losses[-1] - float(expected.detach())) < 1e-5
        ours = AdapterWeights(run.config, run.weights.layout, run.gradient)
        theirs = {name: tuple(matrix.grad for matrix in plain.matrices(name)) for name in run.weights.linears}
        assert largest_difference(dict(ours.linears), theirs) < 1e-5
        engine.optim_step("run", ADAM)
        plain.model.zero_grad()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
