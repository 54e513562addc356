"""The trainer's asyncio side: holds leases on runs, reads their logs, and carries out one cycle after another.

`_place` takes runs that want a trainer, `_read` is one blocking read over the logs of all of them, `_load` brings jobs
into memory, `_work` asks the planner for a cycle and has it done, `_renew` keeps the leases, and `_let_go` gives back
runs whose client is gone.
Entries that were finished before this worker took a run are replayed in silence: that rebuilds in memory what the run
was, and then the log goes on.
"""

from __future__ import annotations

import asyncio

import structlog

from services.core import keyspace, streams
from services.core.connection import TRANSIENT_ERRORS, RedisConnection
from services.core.errors import PlatformError
from services.core.names import session_of
from services.core.operations import OperationStore
from services.core.persistence import until_reached
from services.core.run_log import LogEntry, RunLogs, decode_entry, entry_position
from services.core.sessions import Sessions
from services.model.device import DeviceThread
from services.trainer.cycle import carry_out
from services.trainer.engine import TrainerEngine
from services.trainer.held_run import READ_AHEAD, HeldRun
from services.trainer.job import JobRunner
from services.trainer.planner import BACKWARD_COST, Shares, plan
from tinker_proto.internal.v1 import job_pb2

BLOCK_MS = 5000
LET_GO_EVERY_S = 2.0

_log = structlog.get_logger(__name__)


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
        self._cycle_budget = BACKWARD_COST * engine.row_tokens
        self._in_cycle: frozenset[str] = frozenset()
        """Runs of the cycle under way."""

        self._has_work = asyncio.Event()
        self._wants_jobs = asyncio.Event()
        self._stopping = False

    @property
    def runs_held(self) -> int:
        """Runs in this worker's memory."""
        return len(self._held)

    async def run(self) -> None:
        """Serves until `stop`; then finishes the cycle under way and gives every lease back."""
        place = keyspace.place(self._base_model)
        await until_reached(lambda: streams.make_group(self._connection.commands, keyspace.TRAINERS_GROUP, place))
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(loop()) for loop in (self._place, self._read, self._load, self._renew, self._let_go)
            ]
            await self._work()
            # More than once: the Redis client may take a cancellation for a failed connection of its own.
            while running := [loop for loop in loops if not loop.done()]:
                for loop in running:
                    loop.cancel()
                await asyncio.wait(running, timeout=0.5)
        for run in list(self._held):
            await self._give_back(run)

    def stop(self) -> None:
        """Asks `run` to end."""
        self._stopping = True
        self._has_work.set()

    async def _work(self) -> None:
        shares = Shares()
        while not self._stopping:
            waiting = {run: [item.waiting for item in held.ready] for run, held in self._held.items()}
            cycle, shares = plan(waiting, shares, self._cycle_budget)
            if not cycle:
                self._has_work.clear()
                await self._has_work.wait()
                continue
            self._in_cycle = frozenset((*cycle.single, *cycle.joint))
            await carry_out(cycle, self._held, self._jobs, self._logs, self._operations, self._forget)
            self._in_cycle = frozenset()
            self._wants_jobs.set()
            if any(held.is_full and held.entries_here < READ_AHEAD for held in self._held.values()):
                await self._wake_reader()

    async def _load(self) -> None:
        """Reads the jobs of entries that will soon be wanted, also while the device is busy."""
        while True:
            self._wants_jobs.clear()
            for run, held in list(self._held.items()):
                while held.wants_job(self._cycle_budget) and self._held.get(run) is held:
                    entry = held.unread[0]
                    job = await self._job(entry)
                    held.unread.popleft()
                    held.add_job(entry, job)
                    self._has_work.set()
            await self._wants_jobs.wait()

    async def _job(self, entry: LogEntry) -> job_pb2.Job | PlatformError | None:
        if not entry.packed_job:
            return None
        try:
            return await self._logs.read_job(entry)
        except PlatformError as error:
            return error

    async def _read(self) -> None:
        wake = keyspace.wake(self._worker)
        woken = "0-0"
        while True:
            for held in self._held.values():
                held.is_full = held.entries_here >= READ_AHEAD
            logs = {keyspace.run_log(run): held for run, held in self._held.items() if not held.is_full}
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
                logs[entry.stream].unread.append(decoded)
                self._wants_jobs.set()

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
            for run in list(self._held):
                if self._is_busy(run):
                    continue
                try:
                    alive = await self._sessions.is_alive(session_of(run))
                except TRANSIENT_ERRORS:
                    break
                if not alive and not self._is_busy(run):
                    await self._give_back(run)

    def _is_busy(self, run: str) -> bool:
        return run in self._in_cycle or self._held[run].entries_here > 0

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
