"""The trainer's asyncio side: reads the logs of the runs it holds, and carries out one cycle after another.

`holdings` decides which runs these are and keeps their leases and snapshots. `_read` is one blocking read over the logs
of all of them, `_load` brings jobs into memory, `_work` asks the planner for a cycle and has it done. Jobs that read
files go on beside the cycles.
Entries that were finished before this worker took a run are replayed without a report, from the snapshot that the run
was restored from: that rebuilds the run in memory, and then the log goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

import structlog

from services.core.errors import PlatformError
from services.core.queue import keyspace, streams
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from services.core.queue.operations import OperationStore
from services.core.queue.run_log import LogEntry, RunLogs, decode_entry, entry_position
from services.trainer.cycle import Reports, carry_out
from services.trainer.file_jobs import FileJobs
from services.trainer.held_run import READ_AHEAD
from services.trainer.holdings import RELEASE_S, Holdings
from services.trainer.job import JobRunner
from services.trainer.planner import Shares, plan
from tinker_proto.internal.v1 import job_pb2

BLOCK_MS = 5000
_log = structlog.get_logger(__name__)


class TrainerWorker:
    """Serves the training runs of one base model."""

    def __init__(
        self,
        worker: str,
        holdings: Holdings,
        jobs: JobRunner,
        connection: RedisConnection,
        logs: RunLogs,
        operations: OperationStore,
        *,
        cycle_budget: int,
        drain_s: float,
    ) -> None:
        """`cycle_budget` is the most cost of a cycle; see services.trainer.planner."""
        self._worker = worker
        self.holdings = holdings
        self._jobs = jobs
        self._connection = connection
        self._logs = logs
        self._reports = Reports(logs, operations, holdings.forget)
        self._files = FileJobs(holdings.runs, jobs, self._reports, self._look_again)
        self._cycle_budget = cycle_budget
        self._drain_s = drain_s
        self._has_work = asyncio.Event()
        self._wants_jobs = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def runs_held(self) -> int:
        """Runs in this worker's memory."""
        return len(self.holdings.runs)

    async def run(self) -> bool:
        """Serves until `stop`; then finishes the cycle under way, parks every run and gives the leases back.

        Returns:
            Whether the device is free. It is not if the cycle took longer than there was time to drain: what it does is
            not reported, and whoever takes the runs does it again.
        """
        holdings = self.holdings
        async with asyncio.TaskGroup() as tasks:
            leases = tasks.create_task(holdings.keep_leases())
            work = tasks.create_task(self._work(tasks))
            of_holdings = (holdings.watch_liveness, holdings.take_runs, holdings.keep_snapshots, holdings.park_idle)
            loops = [tasks.create_task(loop()) for loop in (*of_holdings, self._read, self._load)]
            await self._stopped.wait()
            deadline = time.monotonic() + self._drain_s - RELEASE_S
            await _end(loops)
            under_way = {work, *self._files.tasks}
            _, unfinished = await asyncio.wait(under_way, timeout=max(0.0, deadline - time.monotonic()))
            if not unfinished:
                await holdings.drain(deadline - time.monotonic())
            else:
                await _end(unfinished)
                await holdings.give_back()
            await _end([leases])
        return not unfinished

    def stop(self) -> None:
        """Asks `run` to end."""
        self._stopped.set()
        self._files.stop()
        self._has_work.set()

    async def _work(self, tasks: asyncio.TaskGroup) -> None:
        shares = Shares()
        runs = self.holdings.runs
        while not self._stopped.is_set():
            self._has_work.clear()
            async with self.holdings.between_operations:
                self._files.start(tasks.create_task)
                waiting = {
                    run: [item.waiting for item in held.ready]
                    for run, held in runs.items()
                    if not held.is_busy and not held.reads_files_next
                }
                cycle, shares = plan(waiting, shares, self._cycle_budget)
                if cycle:
                    await carry_out(cycle, runs, self._jobs, self._reports)
            if any(held.is_full and held.entries_here < READ_AHEAD for held in runs.values()):
                await self.holdings.wake_reader()
            if cycle:
                self._look_again()
            else:
                await self._has_work.wait()

    def _look_again(self) -> None:
        """Has everything looked at that may go on when operations have been carried out."""
        self.holdings.progressed.set()
        self._wants_jobs.set()
        self._has_work.set()

    async def _load(self) -> None:
        """Reads the jobs of entries that will soon be wanted, also while the device is busy."""
        runs = self.holdings.runs
        while True:
            self._wants_jobs.clear()
            for run, held in list(runs.items()):
                while held.wants_job(self._cycle_budget) and runs.get(run) is held:
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
            for held in self.holdings.runs.values():
                held.is_full = held.entries_here >= READ_AHEAD
            logs = {keyspace.run_log(run): held for run, held in self.holdings.runs.items() if not held.is_full}
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


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancels tasks and waits until they are done."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
