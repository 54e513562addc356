"""Jobs that read files, beside the cycles: no other run's operation waits until an adapter has been read.

A run has no other operation in hand meanwhile. A tenant has one such job at a time, so that one who imports much leaves
room for the others, and a few tenants' go on at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping

from services.trainer.cycle import Reports, advance
from services.trainer.held_run import HeldRun
from services.trainer.job import JobRunner

AT_ONCE = 4


class FileJobs:
    """Carries out the jobs of held runs that read files.

    Args:
        held_runs: the runs that this worker holds.
        jobs: carries a job out.
        reports: where results go.
        ended: called after each job.
    """

    def __init__(
        self, held_runs: Mapping[str, HeldRun], jobs: JobRunner, reports: Reports, ended: Callable[[], None]
    ) -> None:
        self._held_runs = held_runs
        self._jobs = jobs
        self._reports = reports
        self._ended = ended
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._stopped = False
        self._tenants: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """Jobs under way."""

    def start(self, create_task: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]) -> None:
        """Begins what can begin; the caller holds the lock on which runs are between two operations."""
        for run, held in self._held_runs.items():
            if held.reads_files_next and not held.is_busy and held.tenant not in self._tenants:
                held.is_busy = True
                self._tenants.add(held.tenant)
                task = create_task(self._carry_out(run, held))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    def stop(self) -> None:
        """Leaves the jobs that have not begun to the next holder of their runs."""
        self._stopped = True

    async def _carry_out(self, run: str, held: HeldRun) -> None:
        def is_wanted() -> bool:
            return self._held_runs.get(run) is held

        try:
            async with self._slots:
                if is_wanted() and not self._stopped:
                    await self._reports.unless_fenced(held, advance(held, self._jobs, self._reports, is_wanted))
        finally:
            held.is_busy = False
            self._tenants.discard(held.tenant)
            self._ended()
