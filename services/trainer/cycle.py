"""Carries out a cycle: each run's single operation in turn, then one pass for all that may share it.

Results are reported in each run's own order. Operations in a pass are begun together, so if the worker dies there, none
counts as its cause; a worker that finds one that was begun before carries it out on its own. A run whose lease has
moved is forgotten, and the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from services.core.errors import DataLossError, PlatformError
from services.core.process.metrics import OPERATIONS
from services.core.queue.operations import OperationStore
from services.core.queue.retry import until_reached
from services.core.queue.run_log import Beginning, FencedError, RunLogs
from services.model.fingerprint import BaseModelChangedError
from services.trainer.held_run import HeldRun, QueuedJob
from services.trainer.job import JobResult, JobRunner
from services.trainer.planner import Cycle
from tinker_proto.internal.v1 import job_pb2

_log = structlog.get_logger(__name__)

Forget = Callable[[HeldRun], Awaitable[None]]
"""Drops a run that another worker has taken."""


async def carry_out(
    cycle: Cycle,
    held_runs: Mapping[str, HeldRun],
    jobs: JobRunner,
    reports: Reports,
) -> None:
    """Carries out a cycle; what fails does so in its operation's result."""
    runs = {run: held_runs[run] for run in (*cycle.single, *cycle.joint)}

    def still_held(names: Iterable[str]) -> Iterator[tuple[str, HeldRun]]:
        return ((run, runs[run]) for run in names if held_runs.get(run) is runs[run])

    single, joint = list(cycle.single), dict(cycle.joint)
    if sum(joint.values()) == 1:
        single.extend(joint)
        joint.clear()
    for _, held in still_held(single):
        await reports.unless_fenced(held, advance(held, jobs, reports))
    begun: dict[str, list[QueuedJob]] = {run: [] for run in joint}
    await asyncio.gather(
        *(reports.unless_fenced(held, _begin(held, joint[run], reports, begun[run])) for run, held in still_held(joint))
    )
    together = [(run, item) for run, _ in still_held(joint) for item in begun[run]]
    if not together:
        return
    outcomes = await jobs.run_together([item.job for _, item in together if isinstance(item.job, job_pb2.Job)])
    results: dict[str, list[tuple[QueuedJob, JobResult]]] = {run: [] for run in joint}
    for (run, item), outcome in zip(together, outcomes, strict=True):
        results[run].append((item, outcome))
    await asyncio.gather(
        *(reports.unless_fenced(held, reports.complete(held, results[run])) for run, held in still_held(joint))
    )


@dataclass(frozen=True)
class Reports:
    """Where beginnings and results go."""

    logs: RunLogs
    operations: OperationStore
    forget: Forget

    async def complete(self, held: HeldRun, results: Sequence[tuple[QueuedJob, JobResult]]) -> None:
        """Stores results of a run's operations in order, however long that takes.

        Raises:
            FencedError: the lease has moved.
        """
        for item, result in results:
            stored = await until_reached(partial(self.operations.result, result.content))
            await until_reached(partial(self.logs.complete, held.lease, item.seq_id, stored, result.writes))
            error = result.content if isinstance(result.content, PlatformError) else None
            OPERATIONS.labels(item.kind_name, error.reason if error is not None else "").inc()
            held.carried_out(item, changed=error is None)

    async def unless_fenced(self, held: HeldRun, step: Awaitable[None]) -> None:
        """Awaits a step of a run; forgets the run if its lease has moved."""
        try:
            await step
        except FencedError:
            await self.forget(held)


async def advance(
    held: HeldRun, jobs: JobRunner, reports: Reports, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Carries out a run's first ready operation, or replays it if it was finished before.

    Args:
        held: the run.
        jobs: carries the job out.
        reports: where its result goes.
        is_wanted: whether this worker still holds the run.

    Raises:
        FencedError: the lease has moved.
    """
    item = held.ready.popleft()
    lease, seq_id = held.lease, item.seq_id
    if item.replay:
        await _replay(held, item, jobs, is_wanted)
    elif not await until_reached(lambda: reports.logs.begin(lease, seq_id)):
        await until_reached(lambda: reports.logs.skip(lease, seq_id))
        held.carried_out(item, changed=False)
    elif held.lost is not None:
        await reports.complete(held, [(item, JobResult(held.lost))])
    elif isinstance(item.job, PlatformError):
        await reports.complete(held, [(item, JobResult(item.job))])
    else:
        await reports.complete(held, [(item, await jobs.run(item.job, is_wanted=is_wanted))])


async def _replay(held: HeldRun, item: QueuedJob, jobs: JobRunner, is_wanted: Callable[[], bool]) -> None:
    if held.lost is not None:
        return
    try:
        if isinstance(item.job, PlatformError):
            raise item.job
        await jobs.replay(item.job, held.recovery.sources.get(item.seq_id, ""), is_wanted=is_wanted)
        held.carried_out(item, changed=True)
    except PlatformError as error:
        message = f"the run cannot be rebuilt: operation {item.seq_id} of its log failed: {error.message}"
        _log.error("replay failed", run=held.lease.run, seq_id=item.seq_id, error=error.message)
        held.lost = error if isinstance(error, BaseModelChangedError) else DataLossError(message, reason="RUN_LOST")


async def _begin(held: HeldRun, count: int, reports: Reports, begun: list[QueuedJob]) -> None:
    """Begins a run's first ready operations together with those of others; what cannot join waits for its turn.

    Raises:
        FencedError: the lease has moved.
    """
    for _ in range(count):
        lease, seq_id = held.lease, held.ready[0].seq_id
        beginning = Beginning.MUST_RUN_ALONE
        if held.lost is None:
            beginning = await until_reached(partial(reports.logs.begin_together, lease, seq_id))
        if beginning is not Beginning.BEGUN:
            held.run_head_alone()
            return
        begun.append(held.ready.popleft())
