"""Training through the whole platform is plain PEFT with torch's AdamW, to 1e-5 in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tinker_client as tinker
from services.model.adapter_config import AdapterConfig
from testing.plain_peft import PlainPeft
from testing.platform import BASE_MODEL
from tinker_client import types

SEED, RANK, STEPS = 11, 8, 5
ADAM = types.AdamParams(learning_rate=3e-3, beta1=0.85, beta2=0.97, eps=1e-7, weight_decay=0.05, grad_clip_norm=1.5)


def examples() -> list[tuple[list[int], list[int], list[float]]]:
    """(tokens, targets, weights) of different lengths, some weights zero and some negative."""
    generator = np.random.default_rng(3)
    rows = []
    for length in (3, 17, 9, 30):
        tokens = generator.integers(3, 89, length + 1).tolist()
        weights = generator.choice([0.0, 1.0, 0.5, -0.25], length).tolist()
        rows.append((tokens[:-1], tokens[1:], weights))
    return rows


def data(rows: list[tuple[list[int], list[int], list[float]]]) -> list[types.Datum]:
    return [
        types.Datum(types.ModelInput.from_ints(tokens), {"target_tokens": targets, "weights": weights})
        for tokens, targets, weights in rows
    ]


def train_plain(model_dir: Path) -> list[np.ndarray]:
    """The logprobs of every example after the steps, in plain PEFT and torch."""
    plain = PlainPeft(model_dir, AdapterConfig(rank=RANK, seed=SEED))
    optimizer = torch.optim.AdamW(
        plain.parameters(),
        lr=ADAM.learning_rate,
        betas=(ADAM.beta1, ADAM.beta2),
        eps=ADAM.eps,
        weight_decay=ADAM.weight_decay,
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        for tokens, targets, weights in examples():
            loss = -(plain.logprobs(tokens, torch.tensor(targets)) * torch.tensor(weights)).sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), ADAM.grad_clip_norm)
        optimizer.step()
    with torch.no_grad():
        return [plain.logprobs(tokens, torch.tensor(targets)).numpy() for tokens, targets, _ in examples()]


@pytest.mark.parametrize("split", [False, True], ids=["one call a step", "two calls a step"])
def test_k_steps_equal_plain_peft_and_adamw(service: tinker.ServiceClient, model_dir: Path, split: bool) -> None:
    run = service.create_lora_training_client(BASE_MODEL, rank=RANK, seed=SEED)
    rows = examples()
    batches = [rows[:1], rows[1:]] if split else [rows]
    for _ in range(STEPS):
        for batch in batches:
            run.forward_backward(data(batch), "cross_entropy")
        run.optim_step(ADAM)
    outputs = run.forward(data(rows), "cross_entropy").result().loss_fn_outputs
    for output, expected in zip(outputs, train_plain(model_dir), strict=True):
        np.testing.assert_allclose(output["logprobs"].to_numpy(), expected, atol=1e-5)
