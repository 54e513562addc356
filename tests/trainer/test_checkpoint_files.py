"""Checkpoints: continuing from one is never having stopped, and a damaged one is refused by the file's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.core.errors import DataLossError, InvalidArgumentError
from services.core.storage.checkpoint_store import MANIFEST_FILE
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.manifest import DirectoryKind, Manifest
from services.trainer.engine.checkpoint_files import OPTIMIZER_FILE, read_training_checkpoint, write_checkpoint
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.run_state import RunState
from testing.passes import run_alone
from testing.training_data import ADAM, random_data, work

CONFIG = AdapterConfig(4, seed=9)


def _train(engine: LocalTrainerEngine, run: str, seeds: range, *, step: bool = True) -> None:
    for seed in seeds:
        run_alone(engine, work(run, random_data("cross_entropy", (8, 5), seed=seed)))
        if step:
            engine.optim_step(run, ADAM)


def _write(engine: LocalTrainerEngine, run: str, directory: Path, kind: DirectoryKind = "training") -> Path:
    state = engine.run(run)
    write_checkpoint(directory, state, engine.base, Manifest(kind, run, engine.base.name, state.config, f"{run}:1"))
    return directory


def _vectors(state: RunState) -> list[torch.Tensor]:
    return [state.weights.flat, *state.optimizer_vectors().values()]


def _assert_equal(one: RunState, other: RunState) -> None:
    assert one.step == other.step
    assert one.config == other.config
    assert all(torch.equal(left, right) for left, right in zip(_vectors(one), _vectors(other), strict=True))


@pytest.mark.parametrize("accumulated", [False, True])
def test_continuing_is_bit_equal_to_never_having_stopped(
    load: Callable[..., BaseModel], tmp_path: Path, accumulated: bool
) -> None:
    engine = LocalTrainerEngine(load())
    state = engine.create_run("run", CONFIG)
    _train(engine, "run", range(3))
    if accumulated:
        _train(engine, "run", range(3, 4), step=False)
    _write(engine, "run", tmp_path)
    elsewhere = LocalTrainerEngine(load())
    resumed = elsewhere.add_run("run", read_training_checkpoint(tmp_path, elsewhere.base))
    _assert_equal(resumed, state)
    assert bool(resumed.gradient.any()) == accumulated
    for either in (engine, elsewhere):
        either.optim_step("run", ADAM)
        _train(either, "run", range(4, 6))
    _assert_equal(resumed, state)


def test_loading_into_a_run_restores_all_or_the_weights_alone(engine: LocalTrainerEngine, tmp_path: Path) -> None:
    saved = engine.create_run("saved", CONFIG)
    _train(engine, "saved", range(2))
    _train(engine, "saved", range(2, 3), step=False)
    checkpoint = _write(engine, "saved", tmp_path)
    other = engine.create_run("other", AdapterConfig(4, seed=1))
    _train(engine, "other", range(5))
    engine.load("other", engine.read_checkpoint(checkpoint), restore_optimizer=True)
    assert other.step == saved.step
    assert all(torch.equal(left, right) for left, right in zip(_vectors(other), _vectors(saved), strict=True))
    engine.load("other", engine.read_checkpoint(checkpoint), restore_optimizer=False)
    assert torch.equal(other.weights.flat, saved.weights.flat)
    assert other.step == 0
    assert not any(vector.any() for vector in other.optimizer_vectors().values())


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (AdapterConfig(8, seed=0), r"must be a checkpoint with the run's rank, 8 \(got 4\)"),
        (
            AdapterConfig(4, train_mlp=False, seed=0),
            r"the run's targets, \('q_proj', [^)]*'lm_head'\) \(got .*'gate_proj'",
        ),
        (AdapterConfig(4, train_unembed=False, seed=0), r"the run's targets, \('q_proj', [^)]*'down_proj'\) \(got "),
    ],
)
def test_another_shape_is_refused_by_name(
    engine: LocalTrainerEngine, tmp_path: Path, config: AdapterConfig, name: str
) -> None:
    engine.create_run("saved", CONFIG)
    checkpoint = _write(engine, "saved", tmp_path)
    engine.create_run("run", config)
    before = engine.run("run").weights.flat.clone()
    with pytest.raises(InvalidArgumentError, match=name):
        engine.load("run", engine.read_checkpoint(checkpoint), restore_optimizer=True)
    assert torch.equal(engine.run("run").weights.flat, before)


def test_another_base_model_is_refused_by_name(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    engine = LocalTrainerEngine(load("llama"))
    engine.create_run("run", CONFIG)
    with pytest.raises(InvalidArgumentError, match=r"must be 'tiny-qwen3' \(got 'tiny-llama'\)"):
        read_training_checkpoint(_write(engine, "run", tmp_path), load("qwen3"))


def test_a_sampler_checkpoint_has_no_optimizer_and_cannot_be_trained(
    engine: LocalTrainerEngine, tmp_path: Path
) -> None:
    engine.create_run("run", CONFIG)
    _write(engine, "run", tmp_path, "sampler")
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE}
    with pytest.raises(InvalidArgumentError, match="sampler checkpoint"):
        read_training_checkpoint(tmp_path, engine.base)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE, OPTIMIZER_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_a_damaged_file_is_named(engine: LocalTrainerEngine, tmp_path: Path, file: str, damage: str) -> None:
    engine.create_run("run", CONFIG)
    path = _write(engine, "run", tmp_path) / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[1] ^= 0x40
        path.write_bytes(content)
    with pytest.raises(DataLossError, match=file.replace(".", r"\.")):
        read_training_checkpoint(tmp_path, engine.base)


def test_the_manifest_tells_what_the_checkpoint_is(engine: LocalTrainerEngine, tmp_path: Path) -> None:
    engine.create_run("run", CONFIG)
    manifest = Manifest.read(_write(engine, "run", tmp_path))
    assert (manifest.kind, manifest.training_run_id, manifest.base_model) == ("training", "run", "tiny-qwen3")
    assert manifest.adapter == CONFIG
    assert manifest.operation == "run:1"
    assert manifest.files.keys() == {CONFIG_FILE, WEIGHTS_FILE, OPTIMIZER_FILE}
