"""What a tenant stores has a bound: a save beyond it fails by name, changes nothing, and hurts nobody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.core.catalog.pins import Pins
from services.core.catalog.runs import Catalog
from services.core.names import OperationName
from services.core.queue.connection import RedisConnection
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.local import LocalStorage
from services.core.unnamed_weights import weights_location
from services.model.base import BaseModel
from testing.served_trainer import serving
from testing.training_queue import Queue, loss_of, open_queue
from testing.watched_engine import WatchedEngine
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import training_pb2

HEAVY, LIGHT = "s0:train:0", "s1:train:0"
QUOTA = 1 << 20


async def test_a_save_beyond_the_quota_fails_by_name_and_deleting_makes_space(
    connection: RedisConnection, load: Callable[..., BaseModel], data_dir: Path
) -> None:
    engine = WatchedEngine(load(), row_tokens=64)
    queue: Queue = open_queue(connection, engine.base, data_dir)
    catalog, store = Catalog(connection), CheckpointStore(LocalStorage(data_dir))
    pins = Pins(connection, store)
    for tenant, run in (("heavy", HEAVY), ("light", LIGHT)):
        await catalog.add_run(tenant, training_pb2.TrainingRun(training_run_id=run, base_model=queue.base_model))

    async def save(run: str, tenant: str, name: str, *, overwrite: bool = False) -> str:
        """The reason why a save fails; "" if it does not."""
        saved = await queue.save_state(run, tenant, name, overwrite=overwrite)
        return (await queue.result(saved, tenant)).error.reason

    def stored(run: str) -> int:
        return sum(found.size_bytes for location, found in store.all() if location.startswith(run))

    async with serving(connection, engine, queue, data_dir, max_stored_bytes_per_tenant=QUOTA):
        await queue.create(HEAVY, "heavy")
        await queue.create(LIGHT, "light")
        count = 0
        while not (refused := await save(HEAVY, "heavy", f"c{count}")):
            count += 1
        assert (refused, count > 1) == ("STORAGE_QUOTA", True)
        assert stored(HEAVY) <= QUOTA, "the refused one has left nothing"
        assert loss_of(await queue.result(await queue.forward_backward(HEAVY, "heavy"), "heavy"))
        assert await save(LIGHT, "light", "a") == ""

        await catalog.checkpoints.pin(TinkerPath(HEAVY, "weights", "c0"), "heavy", f"{HEAVY}:1000")
        await catalog.checkpoints.remove(TinkerPath(HEAVY, "weights", "c0"), "heavy")
        await pins.remove_unpinned()
        assert await save(HEAVY, "heavy", "more") == "STORAGE_QUOTA", "a pinned one still takes its space"
        await catalog.checkpoints.remove(TinkerPath(HEAVY, "weights", "c1"), "heavy")
        await pins.remove_unpinned()
        assert await save(HEAVY, "heavy", "more") == ""
        assert await save(HEAVY, "heavy", "more", overwrite=True) == "", "it takes the place of the first"


async def test_the_number_of_checkpoints_has_a_bound(
    connection: RedisConnection, load: Callable[..., BaseModel], data_dir: Path
) -> None:
    engine = WatchedEngine(load(), row_tokens=64)
    queue: Queue = open_queue(connection, engine.base, data_dir)
    await Catalog(connection).add_run("t", training_pb2.TrainingRun(training_run_id=HEAVY, base_model=queue.base_model))
    async with serving(connection, engine, queue, data_dir, max_checkpoints_per_tenant=1):
        await queue.create(HEAVY, "t")
        saves = [await queue.save_state(HEAVY, "t", name) for name in ("a", "b")]
        ends = [(await queue.result(name, "t")).error.reason for name in saves]
        replaced = await queue.result(await queue.save_state(HEAVY, "t", "a", overwrite=True), "t")
        unnamed = [await queue.save_unnamed(HEAVY, "t") for _ in range(2)]
        saved = [await queue.result(name, "t") for name in unnamed]
    assert not any(operation.HasField("error") for operation in saved), "unnamed weights are no checkpoints"
    location = weights_location(HEAVY, OperationName.parse(unnamed[1]).seq_id)
    weights = await Catalog(connection).unnamed_weights.use(location, "t")
    store = CheckpointStore(LocalStorage(data_dir))
    assert weights.checkpoint.size_bytes == store.size_bytes(location) > 0
    assert ends == ["", "TOO_MANY_CHECKPOINTS"]
    assert not replaced.HasField("error")
