"""A bfloat16 base model: adapters, gradients and logprobs stay float32 and stay near those of float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.model.adapter_config import AdapterConfig
from services.model.base import load_base_model
from services.trainer.engine.local import LocalTrainerEngine
from testing.passes import all_logprobs, logprobs_of, run_alone
from testing.training_data import ADAM, random_data, work


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_training_stays_near_float32(source: Callable[..., Path], family: str) -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = LocalTrainerEngine(load_base_model(str(source(family)), name="tiny", device="cpu", dtype=dtype))
        state = engine.create_run("run", AdapterConfig(8, seed=1))
        for seed in range(3):
            outcome = run_alone(engine, work("run", random_data("cross_entropy", (30, 20), seed=seed)))
            gradient = state.gradient.clone()
            engine.optim_step("run", dataclasses.replace(ADAM, learning_rate=1e-3))
        assert state.weights.flat.dtype == gradient.dtype == logprobs_of(outcome)[0].dtype == torch.float32
        results.append((all_logprobs(outcome), gradient))
    (wide_logprobs, wide_gradient), (logprobs, gradient) = results
    assert float((logprobs - wide_logprobs).abs().mean()) < 3e-2
    assert float(torch.cosine_similarity(gradient, wide_gradient, dim=0)) > 0.99


def test_the_same_seed_gives_the_same_adapter_whatever_the_dtype(source: Callable[..., Path]) -> None:
    wide, narrow = (
        LocalTrainerEngine(load_base_model(str(source()), name="tiny", device="cpu", dtype=dtype)).create_run(
            "run", AdapterConfig(8, seed=1)
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(wide.weights.flat, narrow.weights.flat)
