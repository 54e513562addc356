"""Nothing of one run reaches another: whatever is done to run A, run B keeps its bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.manifest import Manifest
from services.trainer.engine.checkpoint_files import write_checkpoint
from services.trainer.engine.local import LocalTrainerEngine
from testing.passes import run_alone
from testing.training_data import ADAM, random_data, work

CONFIG = AdapterConfig(4, seed=0)


@pytest.fixture
def pair(engine: LocalTrainerEngine) -> LocalTrainerEngine:
    """Two runs of one shape that have taken steps and have accumulated a gradient."""
    for name in ("a", "b"):
        engine.create_run(name, CONFIG)
        for seed in range(3):
            run_alone(engine, work(name, random_data("cross_entropy", (8, 5), seed=seed)))
            if seed < 2:
                engine.optim_step(name, ADAM)
    return engine


def _save(engine: LocalTrainerEngine, directory: Path) -> None:
    state = engine.run("a")
    write_checkpoint(directory, state, engine.base, Manifest("training", "a", engine.base.name, state.config, "a:1"))


def _load(engine: LocalTrainerEngine, directory: Path) -> None:
    _save(engine, directory)
    engine.load("a", engine.read_checkpoint(directory), restore_optimizer=True)


@pytest.mark.parametrize(
    "act",
    [
        lambda engine, _: engine.optim_step("a", ADAM),
        _save,
        _load,
        lambda engine, _: engine.drop_run("a"),
        lambda engine, _: run_alone(engine, work("a", random_data("ppo", (9,)), "ppo")),
        lambda engine, _: engine.run_pass([work("a", random_data("gspo", (9,)), "gspo", backward=False)]),
        lambda engine, _: engine.run("a").weights.flat.fill_(torch.nan),
    ],
    ids=["optim_step with decay", "save", "load", "unload", "backward", "forward", "NaN"],
)
def test_what_happens_to_one_run_leaves_the_other_bitwise_unchanged(
    pair: LocalTrainerEngine, tmp_path: Path, act: Callable[[LocalTrainerEngine, Path], object]
) -> None:
    before, step = pair.run("b").buffer.clone(), pair.run("b").step
    act(pair, tmp_path)
    assert torch.equal(pair.run("b").buffer, before)
    assert pair.run("b").step == step


def test_a_run_in_the_place_of_another_inherits_nothing(
    pair: LocalTrainerEngine, load: Callable[..., BaseModel]
) -> None:
    pair.drop_run("a")
    fresh = pair.create_run("a", CONFIG)
    elsewhere = LocalTrainerEngine(load()).create_run("a", CONFIG)
    assert torch.equal(fresh.buffer, elsewhere.buffer)
    assert fresh.step == 0


def test_a_run_costs_its_own_memory_and_no_more(pair: LocalTrainerEngine) -> None:
    state = pair.run("a")
    assert state.buffer.untyped_storage().nbytes() == 4 * 4 * state.weights.layout.numel
    assert state.weights.flat.data_ptr() == state.buffer.data_ptr()
