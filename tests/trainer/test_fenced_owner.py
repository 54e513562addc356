"""A trainer whose lease on one run moves while that run is inside a pass of several: only that run's work is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from services.core.errors import NotFoundError, PlatformError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.queue.run_log import Lease
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import PassJob, PassResult
from testing.served_trainer import serving
from testing.training_queue import Queue, loss_of, open_queue
from testing.waiting import DEADLINE_S, until

RUNS = {f"s{i}:train:0": f"tenant-{i}" for i in range(4)}
PASSES = 3


class PausingEngine(LocalTrainerEngine):
    """An engine that stops inside its first pass of several runs until it may go on."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base)
        self.shared_pass: list[PassJob] = []
        self.may_go_on = threading.Event()

    def run_pass(self, work: Sequence[PassJob], *, row_tokens: int | None = None) -> list[PassResult | PlatformError]:
        if not self.shared_pass and len({item.training_run_id for item in work}) > 1:
            self.shared_pass = list(work)
            assert self.may_go_on.wait(DEADLINE_S)
        return super().run_pass(work, row_tokens=row_tokens)

    def holds(self, run: str) -> bool:
        try:
            return bool(self.run(run))
        except NotFoundError:
            return False


async def lease_moved(connection: RedisConnection, queue: Queue, run: str) -> Lease:
    """Another worker's lease on a run whose holder has slept past its own."""
    await connection.commands.hset(keyspace.run_own(run), "expires", 0)
    lease = await queue.logs.claim("thief", run, "0-1", 60_000)
    assert lease is not None
    return lease


async def test_of_a_shared_pass_only_the_fenced_run_loses_its_place(
    connection: RedisConnection, load: Callable[..., BaseModel], data_dir: Path
) -> None:
    engine = PausingEngine(load())
    queue = open_queue(connection, engine.base, data_dir)
    names: dict[str, list[str]] = {}
    for run, tenant in RUNS.items():
        await queue.create(run, tenant)
        names[run] = [await queue.forward_backward(run, tenant) for _ in range(PASSES)]
    # Leases are renewed every third of lease_s: here the run's results are the first to find out.
    async with serving(connection, engine, queue, data_dir, lease_seconds=10 * DEADLINE_S):
        await until(lambda: bool(engine.shared_pass))
        victim = engine.shared_pass[-1].training_run_id
        done_before = await queue.logs.done_seq_id(victim)
        thief = await lease_moved(connection, queue, victim)
        engine.may_go_on.set()
        losses = [loss_of(await queue.result(name, RUNS[run])) for run in RUNS if run != victim for name in names[run]]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5), "same seed and data, same losses"

        await until(lambda: not engine.holds(victim))
        assert await queue.logs.done_seq_id(victim) == done_before, "nothing of the fenced run was written"
        operations = [await queue.operations.get(name, RUNS[victim]) for name in names[victim]]
        assert [operation.done for operation in operations] == [seq <= done_before for seq in range(1, PASSES + 1)]

        # The run is placed again, rebuilt from its log, and what was fenced off is carried out once.
        await queue.logs.release(thief, engine.base.name)
        again = [loss_of(await queue.result(name, RUNS[victim])) for name in names[victim]]
        assert again == pytest.approx([losses[0]] * PASSES, rel=1e-5)
        norms = [await queue.result(await queue.optim_step(run, tenant), tenant) for run, tenant in RUNS.items()]
        assert all(not step.HasField("error") for step in norms)
        after = [await queue.forward_backward(run, tenant) for run, tenant in RUNS.items()]
        stepped = await asyncio.gather(*(queue.result(name, RUNS[name.rpartition(":")[0]]) for name in after))
        assert [loss_of(operation) for operation in stepped] == pytest.approx([loss_of(stepped[0])] * 4, rel=1e-5)
