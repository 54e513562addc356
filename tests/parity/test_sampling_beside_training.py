"""A sampler on the same base model, in the same process, beside runs that train: neither sees the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.manifest import Manifest
from services.sampler.request import GenerationResult
from services.trainer.engine.checkpoint_files import write_checkpoint
from services.trainer.engine.local import LocalTrainerEngine
from testing.passes import run_alone
from testing.rows import random_tokens
from testing.training_data import ADAM, random_data, work
from tests.sampler.fixtures import ask, make_engine, run

Load = Callable[..., BaseModel]


@pytest.fixture
def trainer(load: Load) -> LocalTrainerEngine:
    return with_two_runs(load())


def with_two_runs(base: BaseModel) -> LocalTrainerEngine:
    """Runs a and b, each with weights, moments and an accumulated gradient of its own."""
    engine = LocalTrainerEngine(base)
    for name, seed in (("a", 1), ("b", 2)):
        engine.create_run(name, AdapterConfig(4, seed=seed))
        train(engine, name)
        run_alone(engine, work(name, random_data("cross_entropy", (7, 4), seed=seed)))
    return engine


def train(engine: LocalTrainerEngine, name: str) -> None:
    for seed in range(3):
        run_alone(engine, work(name, random_data("cross_entropy", (9, 20), seed=seed)))
        engine.optim_step(name, ADAM)


def sampler_checkpoint(engine: LocalTrainerEngine, name: str, directory: Path) -> Path:
    state = engine.run(name)
    write_checkpoint(
        directory, state, engine.base, Manifest("sampler", name, engine.base.name, state.config, f"{name}:9")
    )
    return directory


def sampled(base: BaseModel, location: Path) -> list[GenerationResult]:
    """Completions of prompts of several lengths, drawn with seeds."""
    prompts = random_tokens(base, (3, 17, 30))
    requests = [ask(f"{i}", p, max_tokens=12, seed=i, num_samples=2, adapter=location) for i, p in enumerate(prompts)]
    return run(make_engine(base), *requests)


def test_sampling_from_an_old_checkpoint_changes_no_bit_of_any_run(
    trainer: LocalTrainerEngine, load: Load, tmp_path: Path
) -> None:
    location = sampler_checkpoint(trainer, "a", tmp_path)
    train(trainer, "a")
    before = {name: (trainer.run(name).buffer.clone(), trainer.run(name).step) for name in ("a", "b")}
    frozen = [parameter.clone() for parameter in trainer.base.module.parameters()]
    sampled(load(), location)
    for name, (buffer, step) in before.items():
        assert torch.equal(trainer.run(name).buffer, buffer)
        assert trainer.run(name).step == step
    assert all(torch.equal(was, now) for was, now in zip(frozen, trainer.base.module.parameters(), strict=True))


def test_a_checkpoint_gives_the_same_text_whatever_its_run_does_afterwards(
    trainer: LocalTrainerEngine, load: Load, tmp_path: Path
) -> None:
    location, base = sampler_checkpoint(trainer, "a", tmp_path), load()
    first = sampled(base, location)
    train(trainer, "a")
    trainer.drop_run("a")
    train(trainer, "b")
    for before, after in zip(first, sampled(load(), location), strict=True):
        assert [one.tokens for one in before.sequences] == [one.tokens for one in after.sequences]
        assert [one.logprobs for one in before.sequences] == [one.logprobs for one in after.sequences]


def test_training_goes_on_as_if_nobody_had_sampled(trainer: LocalTrainerEngine, load: Load, tmp_path: Path) -> None:
    alone = with_two_runs(load())
    sampled(load(), sampler_checkpoint(trainer, "a", tmp_path))
    for engine in (trainer, alone):
        train(engine, "b")
    assert torch.equal(trainer.run("b").buffer, alone.run("b").buffer)
