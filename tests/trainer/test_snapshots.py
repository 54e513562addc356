"""Snapshots of runs: what a new holder starts from, what is left to the replay, and what damage costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.core.catalog.runs import Catalog
from services.core.errors import DataLossError
from services.core.process.device_thread import DeviceThread
from services.core.queue.connection import RedisConnection
from services.core.queue.payloads import Payloads
from services.core.queue.recovery_state import RecoveryState, RecoveryStates
from services.core.queue.run_log import FencedError
from services.core.storage.blobs import BlobStore
from services.core.storage.local import LocalStorage
from services.core.storage.snapshot_store import SnapshotName, SnapshotStore
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.manifest import Manifest
from services.trainer.engine.run_state import RunState
from services.trainer.engine.snapshot_files import STATE_FILE, read_snapshot, write_snapshot
from services.trainer.snapshot_policy import Progress
from services.trainer.snapshots import Snapshots
from testing.served_trainer import serving
from testing.training_queue import Queue, open_queue
from testing.waiting import until_true
from testing.watched_engine import WatchedEngine
from tinker_proto.v1 import training_pb2

RUN, CALM = "s0:train:0", "s1:train:0"
OFTEN = {"snapshot_steps": 2, "snapshot_share": 1.0, "lease_seconds": 1.0}
NEVER = {"snapshot_steps": 10_000, "snapshot_log_entries": 10_000, "snapshot_seconds": 10_000.0, "lease_seconds": 1.0}


@pytest.fixture
def new_engine(load: Callable[..., BaseModel]) -> Callable[[], WatchedEngine]:
    return lambda: WatchedEngine(load(), row_tokens=64)


@pytest.fixture
def queue(connection: RedisConnection, new_engine: Callable[[], WatchedEngine], data_dir: Path) -> Queue:
    return open_queue(connection, new_engine().base, data_dir)


@pytest.fixture
def recovery_states(connection: RedisConnection, data_dir: Path) -> RecoveryStates:
    return RecoveryStates(connection, Payloads(BlobStore(LocalStorage(data_dir))))


async def train(queue: Queue, run: str, steps: int) -> None:
    """Runs steps of different data to their end."""
    for _ in range(steps):
        seq_id = queue.next_seq_ids[run]
        await queue.forward_backward(run, "t", (3 + seq_id % 5, 6))
        last = await queue.optim_step(run, "t")
    assert not (await queue.result(last, "t")).HasField("error")


async def calm_state(
    connection: RedisConnection, engine: WatchedEngine, queue: Queue, data: Path, steps: int
) -> RunState:
    """The state of a run that was never disturbed."""
    await queue.create(CALM, "t")
    async with serving(connection, engine, queue, data, name="calm", dies=True, **NEVER):
        await train(queue, CALM, steps)
        return engine.run(CALM).copied_to("cpu")


def assert_same(state: RunState, other: RunState) -> None:
    assert torch.equal(state.weights.flat, other.weights.flat)
    assert state.step == other.step
    for name, vector in state.optimizer_vectors().items():
        assert torch.equal(vector, other.optimizer_vectors()[name]), name


async def snapshots_at(recovery_states: RecoveryStates, seq_id: int) -> RecoveryState:
    """The run's recovery state once its newest snapshot has an operation."""

    async def is_there() -> bool:
        kept = (await recovery_states.read(RUN)).snapshots
        return bool(kept) and kept[0].seq_id >= seq_id

    await until_true(is_there)
    return await recovery_states.read(RUN)


def damage(data_dir: Path, name: SnapshotName) -> Path:
    path = data_dir / "snapshots" / RUN / str(name) / STATE_FILE
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return path


def test_a_snapshot_is_the_run_to_the_last_bit(new_engine: Callable[[], WatchedEngine], tmp_path: Path) -> None:
    engine = new_engine()
    config = AdapterConfig(3, seed=1, train_mlp=False, use_rslora=True)
    state = engine.create_run("r", config)
    state.buffer.copy_(torch.randn_like(state.buffer))
    state.step = 7
    copied = state.copied_to("cpu")
    state.buffer.zero_()
    write_snapshot(tmp_path, copied, Manifest("snapshot", "r", engine.base.name, config, "r:3"))
    read = read_snapshot(tmp_path, engine.base)
    assert read.config == config
    assert_same(read, copied)


async def test_a_new_holder_starts_from_the_snapshot_and_replays_the_rest(
    connection: RedisConnection,
    new_engine: Callable[[], WatchedEngine],
    queue: Queue,
    data_dir: Path,
    recovery_states: RecoveryStates,
) -> None:
    await queue.create(RUN, "t")
    async with serving(connection, new_engine(), queue, data_dir, name="first", dies=True, **OFTEN):
        await train(queue, RUN, 4)
        newest = (await snapshots_at(recovery_states, 4)).snapshots[0].seq_id
        await queue.result(await queue.forward_backward(RUN, "t", (5,)), "t")
    engine = new_engine()
    async with serving(connection, engine, queue, data_dir, name="second", **NEVER):
        await queue.result(await queue.optim_step(RUN, "t"), "t")
        assert engine.passes.count([RUN]) == sum(1 for seq_id in range(newest + 1, 10) if seq_id % 2 == 1)
        restored = engine.run(RUN).copied_to("cpu")
    calm = new_engine()
    await queue.create(CALM, "t")
    async with serving(connection, calm, queue, data_dir, name="third", **NEVER):
        await train(queue, CALM, 4)
        await queue.forward_backward(CALM, "t", (5,))
        await queue.result(await queue.optim_step(CALM, "t"), "t")
        assert_same(restored, calm.run(CALM))


async def test_the_log_is_trimmed_behind_the_older_of_two_snapshots_only(
    connection: RedisConnection,
    new_engine: Callable[[], WatchedEngine],
    queue: Queue,
    data_dir: Path,
    recovery_states: RecoveryStates,
) -> None:
    await queue.create(RUN, "t")
    async with serving(connection, new_engine(), queue, data_dir, dies=True, **OFTEN):
        await train(queue, RUN, 2)
        recovery = await snapshots_at(recovery_states, 4)
        while len(recovery.snapshots) < 2:
            assert recovery.first_seq_id == 0, "one snapshot is not enough to forget anything"
            await train(queue, RUN, 2)
            recovery = await snapshots_at(recovery_states, recovery.snapshots[0].seq_id + 1)
        await train(queue, RUN, 6)

        async def is_trimmed() -> bool:
            nonlocal recovery
            recovery = await recovery_states.read(RUN)
            kept = {path.name for path in (data_dir / "snapshots" / RUN).iterdir()}
            return recovery.first_seq_id == recovery.snapshots[1].seq_id + 1 and kept == set(
                map(str, recovery.snapshots)
            )

        await until_true(is_trimmed)


async def test_damage_to_the_newest_snapshot_costs_only_a_longer_replay(
    connection: RedisConnection,
    new_engine: Callable[[], WatchedEngine],
    queue: Queue,
    data_dir: Path,
    recovery_states: RecoveryStates,
) -> None:
    calm = await calm_state(connection, new_engine(), queue, data_dir, 9)
    await queue.create(RUN, "t")
    async with serving(connection, new_engine(), queue, data_dir, name="first", **OFTEN):
        await train(queue, RUN, 4)
        await snapshots_at(recovery_states, 4)
        await train(queue, RUN, 4)
    newest, older = (await recovery_states.read(RUN)).snapshots
    assert newest.seq_id == 16, "a trainer that stops leaves nothing to replay"
    damage(data_dir, newest)
    engine = new_engine()
    async with serving(connection, engine, queue, data_dir, name="second", dies=True, **OFTEN):
        await train(queue, RUN, 1)
        assert engine.passes.count([RUN]) == (17 - older.seq_id + 1) // 2
        assert_same(engine.run(RUN), calm)

        async def is_replaced() -> bool:
            return newest not in (await recovery_states.read(RUN)).snapshots

        await until_true(is_replaced)


async def test_a_run_whose_snapshots_are_all_damaged_is_lost_by_name_and_alone(
    connection: RedisConnection,
    new_engine: Callable[[], WatchedEngine],
    queue: Queue,
    data_dir: Path,
    recovery_states: RecoveryStates,
) -> None:
    for run in (RUN, CALM):
        await queue.create(run, "t")
    async with serving(connection, new_engine(), queue, data_dir, name="first", **OFTEN):
        await train(queue, RUN, 4)
        await snapshots_at(recovery_states, 4)
        await train(queue, RUN, 4)
        await train(queue, CALM, 2)
    paths = [damage(data_dir, name) for name in (await recovery_states.read(RUN)).snapshots]
    assert len(paths) == 2
    async with serving(connection, new_engine(), queue, data_dir, name="second", **OFTEN):
        for name in (await queue.forward_backward(RUN, "t"), await queue.optim_step(RUN, "t")):
            error = (await queue.result(name, "t")).error
            assert error.reason == "RUN_LOST"
            assert all(str(path) in error.message for path in paths)
        await train(queue, CALM, 1)


async def test_a_run_that_has_not_changed_gets_no_new_snapshot(
    connection: RedisConnection,
    new_engine: Callable[[], WatchedEngine],
    queue: Queue,
    data_dir: Path,
    recovery_states: RecoveryStates,
) -> None:
    await queue.create(RUN, "t")
    async with serving(connection, new_engine(), queue, data_dir, name="first", **NEVER):
        await train(queue, RUN, 1)
    before = (await recovery_states.read(RUN)).snapshots
    engine = new_engine()
    async with serving(connection, engine, queue, data_dir, name="second", **NEVER):
        await queue.result(await queue.optim_step("s9:train:0", "t"), "t")
        failed = await queue.load_state(RUN, "t", f"tinker://{RUN}/weights/none")
        assert (await queue.result(failed, "t")).error.reason == "CHECKPOINT_NOT_FOUND"
        assert not engine.passes, "nothing had to be replayed"
    assert (await recovery_states.read(RUN)).snapshots == before != ()


async def test_a_replay_loads_the_same_files_even_if_the_path_has_moved_on(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    data_dir.mkdir()
    (data_dir / "snapshots").write_text("no directory: snapshots cannot be written")
    record = training_pb2.TrainingRun(training_run_id=RUN, base_model=queue.base_model)
    await Catalog(connection).add_run("t", record)
    path = f"tinker://{RUN}/weights/kept"
    await queue.create(RUN, "t")
    engine = new_engine()
    async with serving(connection, engine, queue, data_dir, name="first", dies=True, **OFTEN):
        await train(queue, RUN, 2)
        await queue.save_state(RUN, "t", "kept")
        await train(queue, RUN, 1)
        await queue.load_state(RUN, "t", path)
        await train(queue, RUN, 1)
        saved = await queue.result(await queue.save_state(RUN, "t", "kept", overwrite=True), "t")
        assert not saved.HasField("error"), saved.error
        before = engine.run(RUN).copied_to("cpu")
    again = new_engine()
    async with serving(connection, again, queue, data_dir, name="second", dies=True, **OFTEN):
        await queue.result(await queue.load_state(RUN, "t", "tinker://s7:train:0/weights/none"), "t")
        assert_same(again.run(RUN), before)


async def test_an_owner_whose_lease_has_moved_makes_no_snapshot_current(
    connection: RedisConnection,
    new_engine: Callable[[], WatchedEngine],
    queue: Queue,
    data_dir: Path,
    recovery_states: RecoveryStates,
) -> None:
    engine, device = new_engine(), DeviceThread()
    await queue.create(RUN, "t")
    snapshots = Snapshots(engine, device, SnapshotStore(LocalStorage(data_dir)), recovery_states)
    old = await queue.logs.claim("w", RUN, "0-1", 60_000)
    assert old is not None
    held = await snapshots.restore(old)
    engine.create_run(RUN, AdapterConfig(2, seed=1))
    held.progress = Progress(0, changes=1)
    copy = await snapshots.copy(held)
    assert copy is not None
    assert await queue.logs.claim("w", RUN, "0-1", 60_000)
    with pytest.raises(FencedError):
        await snapshots.save(held, copy)
    assert (await recovery_states.read(RUN)).snapshots == ()
    assert not [path for path in (data_dir / "snapshots").rglob("*") if path.is_file()]
    device.close()


def test_a_snapshot_of_another_base_model_is_refused_by_name(
    new_engine: Callable[[], WatchedEngine], tmp_path: Path
) -> None:
    engine = new_engine()
    config = AdapterConfig(3, seed=1)
    state = engine.create_run("r", config)
    write_snapshot(tmp_path, state, Manifest("snapshot", "r", "another", config, "r:3"))
    with pytest.raises(DataLossError, match=str(tmp_path)):
        read_snapshot(tmp_path, engine.base)
