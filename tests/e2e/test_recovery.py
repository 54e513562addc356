"""A trainer dies with SIGKILL in the middle of everything that it does, or sleeps past its lease: nothing is lost.

Three tenants' runs train together. However often their trainers die, each operation gets exactly one result and the
checkpoints at the end have the bytes of runs that nothing disturbed.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import redis

from services.core.catalog.pages import PageRequest
from services.core.catalog.runs import Catalog
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.run_log import RunLogs
from services.core.storage.blobs import BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.files import PARTIAL_PREFIX
from services.core.storage.local import LocalStorage
from testing.tiny_models import save_model, tiny_config
from testing.training_queue import Queue
from tests.e2e.trainers import BASE_MODEL, Trainers, signal_to, spin_until
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import training_pb2

TENANTS = ("alice", "bob", "carol")
STEPS = 3
BIG = (60,) * 5
"""Lengths of a batch of which all tenants' fit into one pass, and which takes long enough to be killed in."""

NO_SNAPSHOTS = {"snapshot_steps": 10_000, "snapshot_log_entries": 10_000, "snapshot_seconds": 10_000.0}
MANY_SNAPSHOTS = {"snapshot_steps": 1, "snapshot_share": 1.0}


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose adapters are large enough for a step to take a while."""
    config = tiny_config("qwen3")
    config.update({"hidden_size": 256, "intermediate_size": 512})
    return save_model(tmp_path_factory.mktemp("wide-model"), config)


@dataclass
class Scene:
    """Runs of three tenants, over one Redis and in one data directory."""

    queue: Queue
    commands: redis.Redis
    data_dir: Path
    catalog: Catalog
    trainers: Trainers
    names: dict[str, list[str]] = field(default_factory=dict)
    """Operations by what they do, in the order of their seq_ids."""

    tenants: dict[str, str] = field(default_factory=dict)
    """Whose each operation is."""

    async def enqueue(self) -> None:
        """Queues everything that all runs do."""
        for index, tenant in enumerate(TENANTS):
            run = f"s{index}:train:0"
            record = training_pb2.TrainingRun(training_run_id=run, base_model=BASE_MODEL)
            await self.catalog.add_run(tenant, record)
            self._note("create", tenant, await self.queue.create(run, tenant, rank=64))
            for step in range(STEPS):
                for _ in range(4 if step == 1 else 0):
                    self._note("big", tenant, await self.queue.forward_backward(run, tenant, BIG))
                self._note("small", tenant, await self.queue.forward_backward(run, tenant, (7 + index, 5 + step)))
                self._note("optim", tenant, await self.queue.optim_step(run, tenant))
                self._note("save", tenant, await self.queue.save_state(run, tenant, f"after-{step}"))
            self._note("small", tenant, await self.queue.forward_backward(run, tenant))
            self._note("save", tenant, await self.queue.save_state(run, tenant, "last"))

    async def finish(self) -> dict[str, bytes]:
        """Waits for every result; returns the checkpoints' tensors by file."""
        for name, tenant in self.tenants.items():
            result = await self.queue.result(name, tenant)
            assert not result.HasField("error"), result.error
        events = self.commands.xrange(keyspace.EVENTS)
        assert Counter(fields[b"operation"].decode() for _, fields in events) == dict.fromkeys(self.tenants, 1)
        root = self.data_dir / "checkpoints"
        files = [path for path in root.rglob("*.safetensors") if not path.parent.name.startswith(PARTIAL_PREFIX)]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    def running(self, *kinds: str) -> list[str]:
        """Operations that have begun and have no result."""
        names = [name for kind in kinds for name in self.names[kind]]
        pipeline = self.commands.pipeline(transaction=False)
        for name in names:
            pipeline.hget(keyspace.operation(name), "state")
        return [name for name, state in zip(names, pipeline.execute(), strict=True) if state == b"running"]

    def partial_writes(self, root: str) -> list[Path]:
        """Directories that are being written, or were when their writer died."""
        return list((self.data_dir / root).rglob(f"{PARTIAL_PREFIX}*"))

    def record(self) -> dict[bytes, object]:
        """All that Redis says of runs, operations and checkpoints."""
        kinds = ("meta", "operation", "checkpoint", "run-checkpoints", "log")
        keys = [key for kind in kinds for key in self.commands.keys(f"{keyspace.PREFIX}{kind}:*")]
        return {key: self.commands.dump(key) for key in (*keys, keyspace.EVENTS.encode())}

    def _note(self, kind: str, tenant: str, name: str) -> None:
        self.names.setdefault(kind, []).append(name)
        self.tenants[name] = tenant


@asynccontextmanager
async def open_scene(redis_url: str, model_dir: Path, data_dir: Path) -> AsyncIterator[Scene]:
    connection = RedisConnection.open(redis_url)
    payloads = Payloads(BlobStore(LocalStorage(data_dir)))
    queue = Queue(BASE_MODEL, RunLogs(connection, payloads), OperationStore(connection, payloads))
    trainers = Trainers(model_dir, data_dir, redis_url)
    with redis.Redis.from_url(redis_url) as commands:
        commands.flushall()
        opened = Scene(queue, commands, data_dir, Catalog(connection), trainers)
        await opened.enqueue()
        try:
            yield opened
        finally:
            trainers.kill_all()
    await connection.close()


@pytest.fixture(scope="module")
def undisturbed(redis_url: str, wide_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The checkpoints of runs that nothing disturbed."""

    async def undisturbed() -> dict[str, bytes]:
        async with open_scene(redis_url, wide_model, tmp_path_factory.mktemp("undisturbed")) as scene:
            scene.trainers.start(**NO_SNAPSHOTS)
            return await scene.finish()

    return asyncio.run(undisturbed())


@pytest.fixture
async def scene(redis_url: str, wide_model: Path, data_dir: Path) -> AsyncIterator[Scene]:
    async with open_scene(redis_url, wide_model, data_dir) as opened:
        yield opened


def in_shared_pass(scene: Scene) -> bool:
    return len({name.partition(":")[0] for name in scene.running("big")}) >= 2


def in_optim_step(scene: Scene) -> bool:
    return bool(scene.running("optim"))


def in_save(scene: Scene) -> bool:
    return bool(scene.partial_writes("checkpoints") and scene.running("save"))


def in_snapshot(scene: Scene) -> bool:
    return bool(scene.partial_writes("snapshots"))


MOMENTS: dict[str, tuple[Callable[[Scene], bool], dict[str, Any]]] = {
    "forward_backward of several tenants": (in_shared_pass, NO_SNAPSHOTS),
    "optim_step": (in_optim_step, NO_SNAPSHOTS),
    "save": (in_save, NO_SNAPSHOTS),
    "snapshot": (in_snapshot, MANY_SNAPSHOTS),
}


def stop_in_the_middle(scene: Scene, moment: str, number: signal.Signals) -> BaseProcess:
    """Sends a signal to a trainer at a moment, and makes sure that it came then: a short one is tried for again."""
    in_the_middle, settings = MOMENTS[moment]
    for _ in range(10):
        trainer = scene.trainers.start(**settings)
        spin_until(lambda: in_the_middle(scene))
        signal_to(trainer, number)
        if number is signal.SIGKILL:
            trainer.join()
        if in_the_middle(scene):
            return trainer
        scene.trainers.kill(trainer)
    raise AssertionError("the moment was missed every time")


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_trainer_that_is_killed_costs_nothing(scene: Scene, undisturbed: dict[str, bytes], moment: str) -> None:
    stop_in_the_middle(scene, moment, signal.SIGKILL)
    scene.trainers.start(**MOMENTS[moment][1])
    assert await scene.finish() == undisturbed


async def test_a_trainer_that_is_killed_while_it_replays_costs_nothing(
    scene: Scene, undisturbed: dict[str, bytes]
) -> None:
    meta = [keyspace.run_meta(f"s{index}:train:0") for index in range(len(TENANTS))]

    def done() -> list[int]:
        return [int(scene.commands.hget(key, "done_seq") or -1) for key in meta]

    def trainers_with_runs() -> int:
        return len(scene.commands.keys(f"{keyspace.PREFIX}wake:*"))

    first = scene.trainers.start(**NO_SNAPSHOTS)
    spin_until(lambda: min(done()) >= 7)
    scene.trainers.kill(first)
    before = done()
    second = scene.trainers.start(**NO_SNAPSHOTS)
    spin_until(lambda: trainers_with_runs() == 2)
    scene.trainers.kill(second)
    assert done() == before, "it was still replaying"
    scene.trainers.start(**NO_SNAPSHOTS)
    assert await scene.finish() == undisturbed


@pytest.mark.parametrize("moment", ["forward_backward of several tenants", "save", "snapshot"])
async def test_an_owner_that_wakes_up_after_its_lease_has_moved_writes_nothing(
    scene: Scene, undisturbed: dict[str, bytes], moment: str
) -> None:
    sleeper = stop_in_the_middle(scene, moment, signal.SIGSTOP)
    heir = scene.trainers.start(**MOMENTS[moment][1])
    assert await scene.finish() == undisturbed
    assert scene.trainers.terminate(heir) == 0
    record = scene.record()
    signal_to(sleeper, signal.SIGCONT)
    log = scene.data_dir / "trainers.log"
    spin_until(lambda: "lease lost" in log.read_text())
    assert scene.trainers.terminate(sleeper) == 0
    assert scene.record() == record
    assert await scene.finish() == undisturbed


async def test_sigterm_moves_runs_to_another_trainer(scene: Scene, undisturbed: dict[str, bytes]) -> None:
    first = scene.trainers.start(**NO_SNAPSHOTS)
    spin_until(lambda: bool(scene.running("big")))
    scene.trainers.start(**NO_SNAPSHOTS)
    assert scene.trainers.terminate(first) == 0
    kept = [scene.commands.hget(keyspace.run_meta(f"s{index}:train:0"), "snapshots") for index in range(len(TENANTS))]
    assert all(kept), "every run has left with a snapshot"
    assert await scene.finish() == undisturbed


async def test_clients_see_only_whole_checkpoints_while_trainers_die_in_saves(
    scene: Scene,
) -> None:
    store, checkpoints = CheckpointStore(LocalStorage(scene.data_dir)), scene.catalog.checkpoints
    verified: Counter[str] = Counter()
    removed: list[str] = []

    async def client(tenant: str) -> None:
        """Reads everything that is listed to its last byte; what both of its kind have read, the second deletes."""
        mine: set[str] = set()
        while len(mine) < STEPS + 1:
            for item in (await scene.catalog.checkpoint_page(tenant, "", PageRequest(100)))[0]:
                if item.tinker_path not in mine:
                    path = TinkerPath.parse(item.tinker_path)
                    await asyncio.to_thread(store.verify, (await checkpoints.get(path, tenant)).location)
                    mine.add(item.tinker_path)
                    verified[item.tinker_path] += 1
                    if verified[item.tinker_path] == 2:
                        removed.append((await checkpoints.remove(path, tenant)).location)
            await asyncio.sleep(0.01)

    clients = [asyncio.create_task(client(tenant)) for tenant in TENANTS for _ in range(2)]
    for _ in range(2):
        await asyncio.to_thread(stop_in_the_middle, scene, "save", signal.SIGKILL)
    scene.trainers.start(**NO_SNAPSHOTS)
    await asyncio.wait_for(asyncio.gather(*clients), 120)
    assert len(removed) == len(TENANTS) * (STEPS + 1)
    for name, tenant in scene.tenants.items():
        assert not (await scene.queue.result(name, tenant)).HasField("error")
