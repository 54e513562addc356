"""Sampler and trainer agree on every log-probability of weights that were trained, saved and loaded again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.manifest import Manifest
from services.sampler.engine.prefix_cache import BLOCK
from services.trainer.engine.checkpoint_files import write_checkpoint
from services.trainer.engine.local import LocalTrainerEngine
from testing.passes import logprobs_of, run_alone
from testing.rows import random_tokens
from testing.training_data import ADAM, datum, random_data, work
from tests.sampler.fixtures import ask, make_engine, run

TOLERANCE = 1e-4
Load = Callable[..., BaseModel]

KINDS = (
    AdapterConfig(8, seed=1),
    AdapterConfig(3, seed=2, train_unembed=False),
    AdapterConfig(
        1,
        seed=3,
        alpha=5.66,
        target_modules=("lm_head", "up_proj", "model.layers.1.self_attn.v_proj"),
        rank_pattern={"model.layers.1.self_attn.v_proj": 9},
        alpha_pattern={"lm_head": 0.9},
    ),
)


def trained(trainer: LocalTrainerEngine, directory: Path) -> list[Path]:
    """Runs of several kinds after some steps, each saved for the sampler."""
    locations = []
    for index, config in enumerate(KINDS):
        run_id = f"run-{index}"
        state = trainer.create_run(run_id, config)
        for step in range(5):
            run_alone(trainer, work(run_id, random_data("cross_entropy", (9, 20), seed=step)))
            trainer.optim_step(run_id, ADAM)
        locations.append(directory / run_id)
        locations[-1].mkdir()
        manifest = Manifest("sampler", run_id, trainer.base.name, config, f"{run_id}:11")
        write_checkpoint(locations[-1], state, trainer.base, manifest)
    return locations


def trainer_logprobs(trainer: LocalTrainerEngine, run_id: str, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of every token but the first, by the trainer's forward."""
    data = [datum(tokens[:-1], tokens[1:], weights=[1.0] * (len(tokens) - 1)) for tokens in sequences]
    return logprobs_of(run_alone(trainer, work(run_id, data, backward=False)))


@pytest.mark.long
@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("llama", False)])
@pytest.mark.parametrize("budget", [16, 64])
def test_sampler_and_trainer_agree(load: Load, tmp_path: Path, family: str, tied: bool, budget: int) -> None:
    trainer = LocalTrainerEngine(load(family, tied=tied))
    base = load(family, tied=tied)
    locations = trained(trainer, tmp_path)
    prompts = random_tokens(base, [2, 7, 33, 64, 100])
    requests = [
        ask(
            f"{index}-{place}",
            prompt,
            num_samples=2,
            max_tokens=20,
            seed=place,
            adapter=location,
            include_prompt_logprobs=True,
        )
        for place, prompt in enumerate(prompts)
        for index, location in enumerate(locations)
    ]
    engine = make_engine(base, max_tokens_per_step=budget)
    results = run(engine, *requests)
    # Again, now with every prompt's last tokens alone to compute.
    short = [dataclasses.replace(one, name=f"{one.name}-again", prompt_logprobs_last_n=1) for one in requests]
    again = run(engine, *short)
    assert [result.prompt_cache_hit_tokens for result in again] == [
        max(len(request.prompt) - 2, 0) // BLOCK * BLOCK for request in requests
    ]
    worst = 0.0
    for request, cached in zip(requests, again, strict=True):
        run_id = f"run-{request.name[0]}"
        sequences = [[*request.prompt, *sampled.tokens] for sampled in cached.sequences]
        for sampled, expected in zip(cached.sequences, trainer_logprobs(trainer, run_id, sequences), strict=True):
            difference = torch.tensor(sampled.logprobs) - expected[len(request.prompt) - 1 :]
            worst = max(worst, float(difference.abs().max()))
    for request, result in zip(requests, results, strict=True):
        assert result.prompt_logprobs is not None
        sequences = [[*request.prompt, *sampled.tokens] for sampled in result.sequences]
        run_id = f"run-{request.name[0]}"
        for sampled, expected in zip(result.sequences, trainer_logprobs(trainer, run_id, sequences), strict=True):
            actual = torch.tensor([*result.prompt_logprobs[1:], *sampled.logprobs])
            worst = max(worst, float((actual - expected).abs().max()))
    assert worst < TOLERANCE


def test_training_shows_in_the_sampler(load: Load, tmp_path: Path) -> None:
    """The comparison means something: another run's checkpoint is far off."""
    trainer, base = LocalTrainerEngine(load()), load()
    locations = trained(trainer, tmp_path)
    (prompt,) = random_tokens(base, [40])
    (result,) = run(
        make_engine(base), ask("one", prompt, num_samples=0, adapter=locations[0], include_prompt_logprobs=True)
    )
    assert result.prompt_logprobs is not None
    (other,) = trainer_logprobs(trainer, "run-1", [prompt])
    assert (torch.tensor(result.prompt_logprobs[1:]) - other).abs().max() > 0.1
