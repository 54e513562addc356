"""The runs that a trainer holds: takes waiting runs, keeps their leases and snapshots, and parks them.

Runs spread by themselves: a trainer takes one run at a time and hesitates the longer the fuller it is, so that an
emptier one is there first. A run that is parked has its state in a snapshot and no operations left; its next operation
puts it among the waiting runs again. The lock `between_operations` is held while operations are carried out: its holder
finds every run between two operations, each with its result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from services.core.catalog.sessions import Sessions
from services.core.names import session_of
from services.core.queue import keyspace
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from services.core.queue.retry import until_reached
from services.core.queue.run_log import FencedError, Lease, RunLogs
from services.core.queue.waiting_runs import WaitingRuns
from services.trainer.held_run import HeldRun
from services.trainer.snapshot_policy import SnapshotPolicy
from services.trainer.snapshots import Snapshots

HESITATION_S = 0.2
"""How long a trainer waits before it takes a run, if it is all but full."""

YIELD_AFTER_S = 1.0
"""A run that has been idle for so long is parked if another waits."""

KEEP_WAKE_MS = 60_000
"""Lifetime of the wake stream: longer than any read that it interrupts."""

LOOK_EVERY_S = 1.0
RELEASE_S = 2.0
RETRY_SNAPSHOT_S = 5.0
PARKED_AT_ONCE = 4

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class TrainingQueue:
    """The parts of the queue that decide which trainer holds a run."""

    connection: RedisConnection
    waiting: WaitingRuns
    logs: RunLogs
    sessions: Sessions


@dataclass(frozen=True)
class Limits:
    """Limits of one trainer."""

    max_runs: int
    """Most runs in memory."""

    lease_s: float
    idle_s: float
    """A run without operations for so long is parked."""


class Holdings:
    """The runs of one base model that one worker holds.

    Args:
        worker: the process's name.
        base_model: the base model's name.
        queue: where runs wait and leases are.
        snapshots: takes and restores snapshots.
        policy: when a snapshot is due.
        limits: how much it holds.
        memory_pressure: how short the device's memory is, from 0 to 1.
        hesitate: lets seconds pass before it takes a run.
    """

    def __init__(
        self,
        worker: str,
        base_model: str,
        queue: TrainingQueue,
        snapshots: Snapshots,
        policy: SnapshotPolicy,
        limits: Limits,
        memory_pressure: Callable[[], float],
        *,
        hesitate: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._worker = worker
        self._base_model = base_model
        self._connection = queue.connection
        self._waiting = queue.waiting
        self._logs = queue.logs
        self._sessions = queue.sessions
        self._snapshots = snapshots
        self._policy = policy
        self._limits = limits
        self._lease_ms = int(limits.lease_s * 1000)
        self._memory_pressure = memory_pressure
        self._hesitate = hesitate
        self.runs: dict[str, HeldRun] = {}
        self._moving: dict[str, Lease] = {}
        """Leases of runs that are being restored or parked."""

        self._steps: set[asyncio.Task[Any]] = set()
        """Snapshots and parkings in progress."""

        self.between_operations = asyncio.Lock()
        self.progressed = asyncio.Event()
        """Set when operations have been carried out."""

    async def take_runs(self) -> None:
        """Takes runs for ever, one at a time."""
        await self._waiting.open()
        while True:
            try:
                free = self._limits.max_runs - len(self.runs) - len(self._moving)
                if free <= 0:
                    await self._park_longest_idle()
                    continue
                newest = await self._waiting.newest()
                await self._hesitate(HESITATION_S * max(1 - free / self._limits.max_runs, self._memory_pressure()))
                entry = await self._waiting.take()
                if entry is not None:
                    await self._take(entry.fields[b"run"].decode(), entry.entry_id)
                else:
                    await self._waiting.wait(newest)
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.2)

    async def watch_liveness(self) -> None:
        """Watches the connection to the queue for ever: an outage must not look like the death of other trainers."""
        await self._waiting.watch_liveness()

    async def keep_leases(self) -> None:
        """Renews the leases for ever; a run whose lease is lost is forgotten."""
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            leases = [*(held.lease for held in self.runs.values()), *self._moving.values()]
            try:
                kept = await self._logs.renew(leases, self._lease_ms)
                await self._waiting.keep(kept)
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                continue
            for lease in set(leases) - set(kept):
                held = self.runs.get(lease.run)
                if held is not None and held.lease == lease:
                    await self.forget(held)
                elif self._moving.get(lease.run) == lease:
                    del self._moving[lease.run]

    async def keep_snapshots(self) -> None:
        """Takes the snapshots that are due, the most urgent first, and rests in between as the policy says."""
        while True:
            self.progressed.clear()
            held = max(self.runs.values(), key=self._urgency, default=None)
            if held is None or self._urgency(held) < 1:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self.progressed.wait()
                continue
            async with self.between_operations:
                started = time.monotonic()
                is_here = self.runs.get(held.lease.run) is held and not held.is_busy
                copy = await self._snapshots.copy(held) if is_here else None
            if copy is None:
                held.saved = held.progress
                continue
            try:
                saved = await self._to_the_end(self._snapshots.save(held, copy))
            except FencedError:
                await self.forget(held)
                continue
            held.saved_at = started
            pause = self._policy.pause(time.monotonic() - started)
            await asyncio.sleep(pause if saved else RETRY_SNAPSHOT_S)

    async def park_idle(self) -> None:
        """Parks runs that nobody has used for long, and those whose client is gone."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for run, held in list(self.runs.items()):
                if held.entries_here:
                    continue
                try:
                    wanted = await self._sessions.is_alive(session_of(run))
                except TRANSIENT_ERRORS:
                    break
                if not wanted or time.monotonic() - held.used_at > self._limits.idle_s:
                    await self._park(run)

    async def drain(self, seconds: float) -> None:
        """Parks everything; what takes longer is given back without a snapshot, and replayed from the last one."""
        slots = asyncio.Semaphore(PARKED_AT_ONCE)

        async def leave(held: HeldRun) -> None:
            async with slots:
                await self._leave(held)

        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*self._steps, return_exceptions=True)
                leaving = list(self.runs.values())
                self.runs.clear()
                self._moving |= {held.lease.run: held.lease for held in leaving}
                await asyncio.gather(*map(leave, leaving))
        await self.give_back()

    async def give_back(self) -> None:
        """Gives all leases back as things are; those that Redis does not take in time expire."""
        leases = [*(held.lease for held in self.runs.values()), *self._moving.values()]
        releases = (self._logs.release(lease, self._base_model) for lease in leases)
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                await asyncio.gather(*releases, return_exceptions=True)

    async def forget(self, held: HeldRun) -> None:
        """Drops a run that another worker has taken."""
        run = held.lease.run
        if self.runs.get(run) is held:
            del self.runs[run]
            _log.warning("lease lost", run=run)
            await self._snapshots.drop(run)

    async def wake_reader(self) -> None:
        """Makes whoever reads the logs look again at which."""
        await until_reached(self._wake_once)

    async def _wake_once(self) -> None:
        wake = keyspace.wake(self._worker)
        pipeline = self._connection.commands.pipeline(transaction=True)
        pipeline.xadd(wake, {"wake": 1}, maxlen=1, approximate=False)
        pipeline.pexpire(wake, KEEP_WAKE_MS)
        await pipeline.execute()

    async def _to_the_end(self, step: Coroutine[None, None, _T]) -> _T:
        """Awaits a step that goes on when the loop around it is ended; `drain` waits for it."""
        task = asyncio.create_task(step)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        return await asyncio.shield(task)

    async def _take(self, run: str, waiting_entry: str) -> None:
        if run in self.runs or run in self._moving:
            return
        lease = await self._logs.claim(self._worker, run, waiting_entry, self._lease_ms)
        if lease is None:
            return
        self._moving[run] = lease
        held = await self._snapshots.restore(lease)
        if self._moving.pop(run, None) is None:
            await self._snapshots.drop(run)
            return
        self.runs[run] = held
        _log.info("run taken", run=run, epoch=lease.epoch, restored=held.position, done=held.recovery.done_seq_id)
        await self.wake_reader()

    async def _park_longest_idle(self) -> None:
        """Parks the run that has been idle longest if others wait."""
        idle = [held for held in self.runs.values() if not held.entries_here]
        oldest = min(idle, key=lambda held: held.used_at, default=None)
        is_ripe = oldest is not None and time.monotonic() - oldest.used_at > YIELD_AFTER_S
        if oldest is None or not is_ripe or not await self._waiting.has_waiting():
            await asyncio.sleep(0.2)
        else:
            await self._park(oldest.lease.run)

    async def _park(self, run: str) -> None:
        """Parks a run unless it is in use."""
        async with self.between_operations:
            held = self.runs.get(run)
            if held is None or held.entries_here:
                return
            self._moving[run] = self.runs.pop(run).lease
        await self._to_the_end(self._leave(held))

    async def _leave(self, held: HeldRun) -> None:
        """Takes a run out of memory, into a snapshot if it has changed, and gives its lease back."""
        run = held.lease.run
        try:
            copy = await self._snapshots.copy(held) if held.has_unsaved_changes else None
            await self._snapshots.drop(run)
            if copy is not None:
                await self._snapshots.save(held, copy)
            await until_reached(lambda: self._logs.release(held.lease, self._base_model))
            _log.info("run parked", run=run, seq_id=held.progress.seq_id)
        except FencedError:
            _log.warning("lease lost", run=run)
        self._moving.pop(run, None)

    def _urgency(self, held: HeldRun) -> float:
        if held.lost is not None or held.is_busy:
            return 0.0
        return self._policy.urgency(held.saved, held.progress, time.monotonic() - held.saved_at)
