"""The trainer's asyncio side: holds leases on runs, reads their logs, and carries out one operation after another.

`_place` takes runs that want a trainer, `_read` is one blocking read over the logs of all of them, `_work` asks the
planner what comes next and has it done, `_renew` keeps the leases, and `_let_go` gives back runs whose client is gone.
Entries that were finished before this worker took a run are replayed in silence: that rebuilds in memory what the run
was, and then the log goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import structlog

from services.core import keyspace, streams
from services.core.connection import TRANSIENT_ERRORS, RedisConnection
from services.core.errors import DataLossError, PlatformError
from services.core.names import session_of
from services.core.operations import OperationStore
from services.core.persistence import until_reached
from services.core.run_log import FencedError, Lease, LogEntry, RunLogs, decode_entry, entry_position
from services.core.sessions import Sessions
from services.model.device import DeviceThread
from services.trainer.engine import TrainerEngine
from services.trainer.job import JobOutcome, JobRunner
from services.trainer.planner import plan

READ_AHEAD = 32
"""A run's log is read on while fewer of its entries than this wait here."""

BLOCK_MS = 5000
LET_GO_EVERY_S = 2.0

_log = structlog.get_logger(__name__)


@dataclass
class HeldRun:
    """A run whose lease this worker holds."""

    lease: Lease

    replay_until: int
    """Everything up to this seq_id had its result before this worker took the run."""

    skipped: frozenset[int]
    """What of that changed nothing."""

    position: int = -1
    """seq_id of the newest entry that has been read."""

    waiting: deque[LogEntry] = field(default_factory=deque)

    lost: PlatformError | None = None
    """Why its past cannot be rebuilt; its operations fail with this."""


class TrainerWorker:
    """Serves the training runs of one base model."""

    def __init__(
        self,
        worker: str,
        base_model: str,
        engine: TrainerEngine,
        device: DeviceThread,
        jobs: JobRunner,
        connection: RedisConnection,
        logs: RunLogs,
        operations: OperationStore,
        sessions: Sessions,
        *,
        max_runs: int,
        lease_s: float,
    ) -> None:
        self._worker = worker
        self._base_model = base_model
        self._engine = engine
        self._device = device
        self._jobs = jobs
        self._connection = connection
        self._logs = logs
        self._operations = operations
        self._sessions = sessions
        self._max_runs = max_runs
        self._lease_ms = int(lease_s * 1000)
        self._held: dict[str, HeldRun] = {}
        self._current: str | None = None
        """The run whose operation is under way, or was last."""

        self._has_work = asyncio.Event()
        self._stopping = False

    @property
    def runs_held(self) -> int:
        """Runs in this worker's memory."""
        return len(self._held)

    async def run(self) -> None:
        """Serves until `stop`; then finishes the operation under way and gives every lease back."""
        place = keyspace.place(self._base_model)
        await until_reached(lambda: streams.make_group(self._connection.commands, keyspace.TRAINERS_GROUP, place))
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(loop()) for loop in (self._place, self._read, self._renew, self._let_go)]
            await self._work()
            for loop in loops:
                loop.cancel()
        for run in list(self._held):
            await self._give_back(run)

    def stop(self) -> None:
        """Asks `run` to end."""
        self._stopping = True
        self._has_work.set()

    async def _work(self) -> None:
        while not self._stopping:
            run = plan([run for run, held in self._held.items() if held.waiting], self._current)
            self._current = run
            if run is None:
                self._has_work.clear()
                await self._has_work.wait()
                continue
            held = self._held[run]
            entry = held.waiting.popleft()
            if len(held.waiting) == READ_AHEAD - 1:
                await self._wake_reader()
            try:
                await self._advance(held, entry)
            except FencedError:
                await self._forget(run)

    async def _advance(self, held: HeldRun, entry: LogEntry) -> None:
        """Carries out one entry of a run's log, or replays it if it was finished before.

        Raises:
            FencedError: the lease has moved.
        """
        lease, seq_id = held.lease, entry.seq_id
        if seq_id <= held.replay_until:
            if seq_id not in held.skipped and held.lost is None:
                await self._replay(held, entry)
        elif not await until_reached(lambda: self._logs.begin(lease, seq_id)):
            await until_reached(lambda: self._logs.pass_over(lease, seq_id))
        else:
            outcome, writes = await self._carry_out(held, entry)
            result = await self._operations.result(outcome)
            await until_reached(lambda: self._logs.complete(lease, seq_id, result, writes))

    async def _replay(self, held: HeldRun, entry: LogEntry) -> None:
        try:
            await self._jobs.replay(await self._logs.read_job(entry))
        except PlatformError as error:
            message = f"the run cannot be rebuilt: operation {entry.seq_id} of its log failed: {error.message}"
            _log.error("replay failed", run=held.lease.run, seq_id=entry.seq_id, error=error.message)
            held.lost = DataLossError(message, reason="RUN_LOST")

    async def _carry_out(self, held: HeldRun, entry: LogEntry) -> JobOutcome:
        if held.lost is not None:
            return held.lost, ()
        try:
            job = await self._logs.read_job(entry)
        except PlatformError as error:
            return error, ()
        return await self._jobs.run(job)

    async def _read(self) -> None:
        wake = keyspace.wake(self._worker)
        woken = "0-0"
        while True:
            logs = {keyspace.run_log(run): held for run, held in self._held.items() if len(held.waiting) < READ_AHEAD}
            positions = {key: entry_position(held.position) for key, held in logs.items()}
            try:
                entries = await streams.read(
                    self._connection.blocking, {**positions, wake: woken}, count=READ_AHEAD, block_ms=BLOCK_MS
                )
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.2)
                continue
            for entry in entries:
                if entry.stream == wake:
                    woken = entry.entry_id
                    continue
                decoded = decode_entry(entry)
                logs[entry.stream].position = decoded.seq_id
                logs[entry.stream].waiting.append(decoded)
                self._has_work.set()

    async def _wake_reader(self) -> None:
        """Makes `_read` look again at which logs it reads."""
        wake = keyspace.wake(self._worker)
        await until_reached(lambda: self._connection.commands.xadd(wake, {"wake": 1}, maxlen=1, approximate=False))

    async def _place(self) -> None:
        place, group = keyspace.place(self._base_model), keyspace.TRAINERS_GROUP
        while True:
            room = self._max_runs - len(self._held)
            if room <= 0:
                await asyncio.sleep(0.2)
                continue
            try:
                found = await streams.take_over(
                    self._connection.commands, group, self._worker, place, idle_ms=self._lease_ms, count=room
                )
                found += await streams.read_group(
                    self._connection.blocking, group, self._worker, place, count=room, block_ms=1000
                )
                for entry in found:
                    await self._take(entry.fields[b"run"].decode(), entry.entry_id)
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.2)

    async def _take(self, run: str, place_entry: str) -> None:
        if run in self._held:
            return
        lease = await self._logs.claim(self._worker, run, place_entry, self._lease_ms)
        if lease is None:
            return
        done = await self._logs.done_seq_id(run)
        self._held[run] = HeldRun(lease, replay_until=done, skipped=await self._logs.skipped_seq_ids(run))
        _log.info("run taken", run=run, epoch=lease.epoch, replayed=done + 1)
        await self._wake_reader()

    async def _renew(self) -> None:
        place, group = keyspace.place(self._base_model), keyspace.TRAINERS_GROUP
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            leases = [held.lease for held in self._held.values()]
            try:
                kept = await self._logs.renew(leases, self._lease_ms)
                await streams.keep(
                    self._connection.commands, group, self._worker, place, [lease.place_entry for lease in kept]
                )
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                continue
            for lease in leases:
                if lease not in kept and self._held.get(lease.run, None) is not None:
                    await self._forget(lease.run)

    async def _let_go(self) -> None:
        while True:
            await asyncio.sleep(LET_GO_EVERY_S)
            for run, held in list(self._held.items()):
                if held.waiting or run == self._current:
                    continue
                try:
                    alive = await self._sessions.is_alive(session_of(run))
                except TRANSIENT_ERRORS:
                    break
                if not alive and not held.waiting and run != self._current:
                    await self._give_back(run)

    async def _give_back(self, run: str) -> None:
        held = self._held.pop(run)
        await self._device.run(self._engine.drop_run, run)
        await until_reached(lambda: self._logs.release(held.lease, self._base_model))
        _log.info("run given back", run=run)

    async def _forget(self, run: str) -> None:
        """Drops a run that another worker has taken."""
        if self._held.pop(run, None) is not None:
            _log.warning("lease lost", run=run)
            await self._device.run(self._engine.drop_run, run)
