"""Which trainer holds which run: runs spread, move on purpose, go to the disk when they are idle, and come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.core.catalog.sessions import Sessions
from services.core.config import Settings
from services.core.errors import PlatformError
from services.core.process.device_thread import DeviceThread
from services.core.queue.connection import RedisConnection
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.holdings import HESITATION_S
from services.trainer.main import assemble
from services.trainer.values import PassJob, PassResult
from testing.served_trainer import serving
from testing.training_queue import Queue, open_queue
from testing.waiting import until
from testing.watched_engine import WatchedEngine

QUIET = {"snapshot_steps": 10_000, "snapshot_log_entries": 10_000, "snapshot_seconds": 10_000.0}


@pytest.fixture
def new_engine(load: Callable[..., BaseModel]) -> Callable[[], WatchedEngine]:
    return lambda: WatchedEngine(load(), row_tokens=64)


@pytest.fixture
def queue(connection: RedisConnection, new_engine: Callable[[], WatchedEngine], data_dir: Path) -> Queue:
    return open_queue(connection, new_engine().base, data_dir)


async def step(queue: Queue, run: str) -> None:
    await queue.forward_backward(run, "t")
    assert not (await queue.result(await queue.optim_step(run, "t"), "t")).HasField("error")


async def test_a_drained_trainer_leaves_nothing_to_replay(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    runs = [f"s{index}:train:0" for index in range(6)]
    async with serving(connection, new_engine(), queue, data_dir, name="first", **QUIET):
        for run in runs:
            await queue.create(run, "t")
            await step(queue, run)
            await queue.forward_backward(run, "t")
        await asyncio.gather(*(queue.result(f"{run}:3", "t") for run in runs))
    engine = new_engine()
    async with serving(connection, engine, queue, data_dir, name="second", **QUIET):
        for run in runs:
            await queue.result(await queue.optim_step(run, "t"), "t")
        assert not engine.passes
        assert {engine.run(run).step for run in runs} == {2}


async def test_work_goes_on_elsewhere_when_a_trainer_drains(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    run = "s0:train:0"
    await queue.create(run, "t")
    names = [await queue.forward_backward(run, "t", (60, 60)) for _ in range(40)]
    first, second = new_engine(), new_engine()
    async with serving(connection, first, queue, data_dir, name="first", **QUIET):
        await until(lambda: len(first.passes) >= 2)
    async with serving(connection, second, queue, data_dir, name="second", **QUIET):
        results = [await queue.result(name, "t") for name in names]
    assert not any(result.HasField("error") for result in results)
    carried_out = sum(len(shared) for engine in (first, second) for shared in engine.passes)
    assert carried_out == len(names), "each was carried out once"


class StuckEngine(LocalTrainerEngine):
    """An engine whose passes end when a test says so."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base)
        self.begun, self.may_end = threading.Event(), threading.Event()

    def run_pass(self, work: Sequence[PassJob], *, row_tokens: int | None = None) -> list[PassResult | PlatformError]:
        self.begun.set()
        assert self.may_end.wait(60)
        return super().run_pass(work, row_tokens=row_tokens)


async def test_a_drain_is_bounded_and_unfinished_work_is_done_elsewhere(
    connection: RedisConnection,
    load: Callable[..., BaseModel],
    new_engine: Callable[[], WatchedEngine],
    queue: Queue,
    data_dir: Path,
) -> None:
    run, stuck, device = "s0:train:0", StuckEngine(load()), DeviceThread()
    await queue.create(run, "t")
    name = await queue.forward_backward(run, "t")
    worker = assemble(Settings(data_dir=data_dir, drain_seconds=2.2, **QUIET), "first", stuck, device, connection)
    running = asyncio.create_task(worker.run())
    await asyncio.to_thread(stuck.begun.wait, 60)
    worker.stop()
    assert not await asyncio.wait_for(running, 60), "the device is still busy"
    engine = new_engine()
    async with serving(connection, engine, queue, data_dir, name="second", **QUIET):
        assert not (await queue.result(name, "t")).HasField("error")
        assert engine.passes == [[run]]
    stuck.may_end.set()
    device.close()


@pytest.mark.parametrize("turns", range(6))
async def test_a_trainer_that_is_told_to_stop_as_a_result_comes_stops(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], data_dir: Path, turns: int
) -> None:
    device = DeviceThread()
    holdings = assemble(Settings(data_dir=data_dir, **QUIET), "first", new_engine(), device, connection).holdings
    keeping = asyncio.create_task(holdings.keep_snapshots())
    for _ in range(10):  # until it waits for progress
        await asyncio.sleep(0)
    holdings.progressed.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.wait([keeping], timeout=60)
    assert keeping.cancelled()
    device.close()


async def test_an_idle_run_is_parked_and_comes_back_with_its_next_operation(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    run, engine = "s0:train:0", new_engine()
    await queue.create(run, "t")
    async with serving(connection, engine, queue, data_dir, idle_seconds=0.1, **QUIET) as worker:
        await step(queue, run)
        await until(lambda: worker.runs_held == 0)
        assert len(engine.passes) == 1
        await step(queue, run)
        assert len(engine.passes) == 2, "its state came from the disk, not from a replay"
        assert engine.run(run).step == 2


async def test_a_run_whose_client_is_gone_is_parked_and_not_lost(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    run, engine = "s0:train:0", new_engine()
    await queue.create(run, "t")
    async with serving(connection, engine, queue, data_dir, **QUIET) as worker:
        await step(queue, run)
        await Sessions(connection, Settings()).end("s0", "t")
        await until(lambda: worker.runs_held == 0)
        await step(queue, run)
        assert len(engine.passes) == 2


async def test_the_least_recently_used_idle_run_makes_room_for_one_that_waits(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    old, new, other = "s0:train:0", "s1:train:0", "s2:train:0"
    engine = new_engine()
    async with serving(connection, engine, queue, data_dir, max_runs=2, **QUIET) as worker:
        for run in (old, new):
            await queue.create(run, "t")
            await step(queue, run)
        await queue.create(other, "t")
        await step(queue, other)
        assert worker.runs_held == 2
        assert engine.run(new).step == 1, "the one that was used later has stayed"
        await step(queue, old)
        assert engine.run(old).step == 2
        assert len(engine.passes) == 4, "nothing was replayed"


class StoppedClock:
    """Time that passes for trainers which hesitate only as far as a test moves it."""

    def __init__(self, now: float) -> None:
        self._now, self._moved = now, asyncio.Condition()
        self.waiting = 0

    async def sleep(self, seconds: float) -> None:
        """Returns when the clock has come as far."""
        self.waiting += 1
        async with self._moved:
            await self._moved.wait_for(lambda: seconds <= self._now)
        self.waiting -= 1

    async def move_to(self, now: float) -> None:
        """Lets time pass up to `now`."""
        async with self._moved:
            self._now = now
            self._moved.notify_all()


def hesitation_s(runs_held: int, max_runs: int) -> float:
    """Enough for a trainer with so many runs to take another, and too short for a fuller one."""
    return HESITATION_S * (runs_held + 0.5) / max_runs


async def test_runs_spread_over_trainers(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    clock = StoppedClock(0.0)
    common: dict[str, Any] = {"max_runs": 8, "hesitate": clock.sleep, **QUIET}
    async with (
        serving(connection, new_engine(), queue, data_dir, name="first", **common) as first,
        serving(connection, new_engine(), queue, data_dir, name="second", **common) as second,
    ):
        for held in range(4):
            await clock.move_to(hesitation_s(held, max_runs=8))
            for run in (f"s{held}:train:0", f"s{held}:train:1"):
                await queue.create(run, "t")
                await queue.result(f"{run}:0", "t")
            assert (first.runs_held, second.runs_held) == (held + 1, held + 1)


async def test_an_emptier_trainer_takes_first(
    connection: RedisConnection, new_engine: Callable[[], WatchedEngine], queue: Queue, data_dir: Path
) -> None:
    runs, clock = [f"s{index}:train:0" for index in range(8)], StoppedClock(hesitation_s(3, max_runs=8))
    common: dict[str, Any] = {"max_runs": 8, "hesitate": clock.sleep, **QUIET}
    async with serving(connection, new_engine(), queue, data_dir, name="full", **common) as full:
        for run in runs[:4]:
            await queue.create(run, "t")
        await until(lambda: full.runs_held == 4 and clock.waiting == 1)
        async with serving(connection, new_engine(), queue, data_dir, name="empty", **common) as empty:
            for run in runs[4:]:
                await queue.create(run, "t")
                await queue.result(f"{run}:0", "t")
            assert (full.runs_held, empty.runs_held) == (4, 4)
