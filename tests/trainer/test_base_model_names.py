"""One base model under several names: what was made under one of them goes on under another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from services.core.errors import DataLossError, InvalidArgumentError
from services.core.queue.connection import RedisConnection
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from testing.served_trainer import serving
from testing.training_queue import open_queue
from testing.watched_engine import WatchedEngine
from tests.model.fixtures import load, source

__all__ = ["load", "source"]

RUN = "s0:train:0"


def named(base: BaseModel, name: str, *aliases: str) -> BaseModel:
    return dataclasses.replace(base, name=name, aliases=aliases)


async def test_a_run_that_waits_under_an_alias_is_carried_out(
    connection: RedisConnection, load: Callable[..., BaseModel], data_dir: Path
) -> None:
    before = named(load(), "before")
    queue = open_queue(connection, before, data_dir)
    await queue.create(RUN, "t")
    async with serving(connection, WatchedEngine(before, row_tokens=64), queue, data_dir, name="before"):
        await queue.forward_backward(RUN, "t")
        await queue.result(await queue.optim_step(RUN, "t"), "t")
    step = [await queue.forward_backward(RUN, "t"), await queue.optim_step(RUN, "t")]  # wait under the old name
    engine = WatchedEngine(named(load(), "now", "before"), row_tokens=64)
    async with serving(connection, engine, queue, data_dir, name="now"):
        for name in [*step, await queue.optim_step(RUN, "t")]:
            assert not (await queue.result(name, "t")).HasField("error")
        assert engine.run(RUN).step == 3


def test_checkpoints_and_snapshots_of_an_alias_are_opened(load: Callable[..., BaseModel], tmp_path: Path) -> None:
    before = LocalTrainerEngine(named(load(), "Org/Before"))
    before.create_run("r", AdapterConfig(2, seed=1))
    checkpoint, snapshot = tmp_path / "checkpoint", tmp_path / "snapshot"
    checkpoint.mkdir()
    snapshot.mkdir()
    before.export_run("r").write_checkpoint(checkpoint, "r:1", "training")
    before.export_run("r").write_snapshot(snapshot, "r:1")
    now = LocalTrainerEngine(named(load(), "now", "org/before"))
    now.read_checkpoint(checkpoint)
    now.read_snapshot(snapshot)
    other = LocalTrainerEngine(named(load(), "now", "org/other"))
    with pytest.raises(InvalidArgumentError, match="'Org/Before'"):
        other.read_checkpoint(checkpoint)
    with pytest.raises(DataLossError, match="not a snapshot of a run on this base model"):
        other.read_snapshot(snapshot)
