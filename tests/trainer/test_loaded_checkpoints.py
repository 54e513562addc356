"""A run that has loaded a checkpoint can be rebuilt, whatever has become of the checkpoint since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.core.catalog.pins import Pins
from services.core.catalog.runs import Catalog
from services.core.queue.connection import RedisConnection
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.local import LocalStorage
from services.model.base import BaseModel
from testing.served_trainer import serving
from testing.training_queue import Queue, loss_of, open_queue
from testing.watched_engine import WatchedEngine
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import training_pb2

SOURCE, RUN = "s0:train:0", "s1:train:0"
NO_SNAPSHOTS = {"snapshot_steps": 10_000, "snapshot_log_entries": 10_000, "snapshot_seconds": 10_000.0}
SNAPSHOTS = {"snapshot_steps": 1, "snapshot_share": 1.0}


@pytest.fixture
def new_engine(load: Callable[..., BaseModel]) -> Callable[[], WatchedEngine]:
    return lambda: WatchedEngine(load(), row_tokens=64)


@pytest.fixture
def queue(connection: RedisConnection, new_engine: Callable[[], WatchedEngine], data_dir: Path) -> Queue:
    return open_queue(connection, new_engine().base, data_dir)


async def save_source(connection: RedisConnection, queue: Queue) -> tuple[TinkerPath, str]:
    """A trained run's checkpoint, and the name of its save."""
    await Catalog(connection).add_run(
        "t", training_pb2.TrainingRun(training_run_id=SOURCE, base_model=queue.base_model)
    )
    await queue.create(SOURCE, "t")
    await queue.forward_backward(SOURCE, "t")
    await queue.optim_step(SOURCE, "t")
    return TinkerPath(SOURCE, "weights", "a"), await queue.save_state(SOURCE, "t", "a")


async def test_the_files_that_a_run_has_loaded_stay_until_a_snapshot_has_them(
    connection: RedisConnection, queue: Queue, new_engine: Callable[[], WatchedEngine], data_dir: Path
) -> None:
    store = CheckpointStore(LocalStorage(data_dir))
    checkpoints, pins = Catalog(connection).checkpoints, Pins(connection, store)
    settings = {**NO_SNAPSHOTS, "lease_seconds": 1.0}
    async with serving(connection, new_engine(), queue, data_dir, name="first", dies=True, **settings):
        path, saved = await save_source(connection, queue)
        assert not (await queue.result(saved, "t")).HasField("error")
        await queue.create(RUN, "t")
        await queue.load_state(RUN, "t", str(path))
        loaded = loss_of(await queue.result(await queue.forward_backward(RUN, "t"), "t"))
        removed = await checkpoints.remove(path, "t")
        assert not await pins.remove_if_unpinned(removed.location)
    async with serving(connection, new_engine(), queue, data_dir, name="second", dies=True, **settings):
        again = loss_of(await queue.result(await queue.forward_backward(RUN, "t"), "t"))
        assert again == loaded, "rebuilt from a checkpoint that does not exist any more"
        missing = await queue.result(await queue.load_state(RUN, "t", str(path)), "t")
        assert missing.error.reason == "CHECKPOINT_NOT_FOUND"
        assert await pins.are_needed(removed.location), "a load that has failed changes no pin"
    async with serving(connection, new_engine(), queue, data_dir, name="third", **{**SNAPSHOTS, "lease_seconds": 1.0}):
        for _ in range(4):
            await queue.forward_backward(RUN, "t")
            done = await queue.result(await queue.optim_step(RUN, "t"), "t")
        assert not done.HasField("error")
    assert not await pins.are_needed(removed.location), "two snapshots are behind the load"
    assert await pins.remove_if_unpinned(removed.location)
    assert not store.exists(removed.location)


async def test_overwriting_leaves_what_a_run_has_loaded(
    connection: RedisConnection, queue: Queue, new_engine: Callable[[], WatchedEngine], data_dir: Path
) -> None:
    store = CheckpointStore(LocalStorage(data_dir))
    checkpoints, pins = Catalog(connection).checkpoints, Pins(connection, store)
    settings = {**NO_SNAPSHOTS, "lease_seconds": 1.0}
    async with serving(connection, new_engine(), queue, data_dir, name="first", dies=True, **settings):
        path, saved = await save_source(connection, queue)
        await queue.result(saved, "t")
        first = await checkpoints.location_of(path)
        await queue.create(RUN, "t")
        await queue.load_state(RUN, "t", str(path))
        loaded = loss_of(await queue.result(await queue.forward_backward(RUN, "t"), "t"))
        await queue.forward_backward(SOURCE, "t")
        await queue.optim_step(SOURCE, "t")
        overwritten = [await queue.save_state(SOURCE, "t", "a", overwrite=True) for _ in range(2)]
        for name in overwritten:
            assert not (await queue.result(name, "t")).HasField("error")
    assert await pins.remove_unpinned() == 1, "of two that were replaced, one is pinned"
    assert store.exists(first)
    async with serving(connection, new_engine(), queue, data_dir, name="second", **settings):
        assert loss_of(await queue.result(await queue.forward_backward(RUN, "t"), "t")) == loaded
