"""A training run that this worker holds: its lease, what has been read of its log, and how far it has come.

Entries pass through two queues: `unread`, as the log holds them, and `ready`, with their jobs in memory. Both are
bounded, so a run with a long log costs no more than one with a short one.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace

from services.core.errors import DataLossError, PlatformError
from services.core.queue.recovery_state import RecoveryState
from services.core.queue.run_log import Lease, LogEntry
from services.core.storage.snapshot_store import SnapshotName
from services.trainer.operation_kinds import OperationKind, kind_name, kind_of, pass_cost, reads_files
from services.trainer.planner import Waiting
from services.trainer.snapshot_policy import Progress
from tinker_proto.internal.v1 import job_pb2

READ_AHEAD = 32
"""A run's log is read on while fewer of its entries than this wait here."""


@dataclass(frozen=True)
class QueuedJob:
    """An entry of the log with its job in memory."""

    seq_id: int

    job: job_pb2.Job | PlatformError
    """The error if there is no job: it is lost, or the operation was refused."""

    waiting: Waiting
    """What the planner needs to know."""

    replay: bool
    """Whether it had its result before this worker took the run."""

    @property
    def kind(self) -> OperationKind | None:
        """The row of the job's kind; None without a job."""
        return kind_of(self.job) if isinstance(self.job, job_pb2.Job) else None

    @property
    def kind_name(self) -> str:
        """The name of the job's kind, for metrics; "lost" without a job."""
        return (kind_name(self.job) if isinstance(self.job, job_pb2.Job) else "") or "lost"


@dataclass
class HeldRun:
    """A run whose lease this worker holds."""

    lease: Lease
    recovery: RecoveryState

    position: int
    """seq_id of the newest entry that has been read; at first that of the snapshot which the run was restored from."""

    progress: Progress
    """How far the state in memory is."""

    saved: Progress
    """How far the newest snapshot is."""

    snapshots: tuple[SnapshotName, ...] = ()
    """Those that are good, newest first."""

    tenant: str = ""
    """Whose it is; known from the first job that was read."""

    unread: deque[LogEntry] = field(default_factory=deque)
    ready: deque[QueuedJob] = field(default_factory=deque)

    is_full: bool = False
    """Whether the reader has left this run's log out because enough of it waits here."""

    lost: PlatformError | None = None
    """Why its state cannot be rebuilt; its operations fail with this."""

    saved_at: float = field(default_factory=time.monotonic)
    """When the newest snapshot was taken, or the run if there is none of this holder's."""

    is_busy: bool = False
    """Whether an operation is under way beside the cycles: until it has ended, the run is not between operations."""

    used_at: float = field(default_factory=time.monotonic)
    """When the last operation was carried out."""

    @classmethod
    def at(cls, lease: Lease, recovery: RecoveryState, snapshots: tuple[SnapshotName, ...]) -> HeldRun:
        """A run in the state of the first of these snapshots, or in none."""
        begin = Progress(snapshots[0].seq_id if snapshots else -1)
        return cls(lease, recovery, begin.seq_id, begin, begin, snapshots)

    @classmethod
    def beyond_rescue(cls, lease: Lease, recovery: RecoveryState, lost: PlatformError) -> HeldRun:
        """A run whose state cannot be rebuilt: its next operations fail with `lost`."""
        begin = Progress(recovery.done_seq_id)
        return cls(lease, recovery, recovery.done_seq_id, begin, begin, lost=lost)

    @property
    def has_unsaved_changes(self) -> bool:
        """Whether the run has changed since its newest snapshot."""
        return self.lost is None and self.progress.changes > self.saved.changes

    @property
    def entries_here(self) -> int:
        """Entries that have been read and not been carried out to the end."""
        return len(self.unread) + len(self.ready) + self.is_busy

    @property
    def reads_files_next(self) -> bool:
        """Whether the first ready operation reads files."""
        return bool(self.ready) and isinstance(self.ready[0].job, job_pb2.Job) and reads_files(self.ready[0].job)

    def wants_job(self, budget: int) -> bool:
        """Whether the next job should be in memory: a cycle's worth is enough, but a run's head always is."""
        return bool(self.unread) and (not self.ready or sum(item.waiting.cost for item in self.ready) < budget)

    def add_job(self, entry: LogEntry, job: job_pb2.Job | PlatformError | None) -> None:
        """Appends an entry's job to `ready`; drops it if it is to be replayed and has not changed the run.

        Args:
            entry: the entry.
            job: its job; the error if it is lost; None if the operation was refused.
        """
        replay = entry.seq_id <= self.recovery.done_seq_id
        content = job or DataLossError(f"the job of operation {entry.seq_id} of run {self.lease.run} is missing")
        kind = kind_of(content) if isinstance(content, job_pb2.Job) else None
        if replay and (entry.seq_id in self.recovery.skipped or (kind is not None and not kind.changes_run)):
            return
        cost = 0
        if isinstance(content, job_pb2.Job):
            self.tenant = content.tenant
            cost = pass_cost(content)
        shares_pass = kind is not None and kind.shared_pass is not None
        waiting = Waiting(self.tenant, cost, joins=shares_pass and not replay)
        self.ready.append(QueuedJob(entry.seq_id, content, waiting, replay))

    def run_head_alone(self) -> None:
        """Has the first ready operation carried out on its own."""
        head = self.ready[0]
        self.ready[0] = replace(head, waiting=replace(head.waiting, joins=False))

    def carried_out(self, item: QueuedJob, *, changed: bool) -> None:
        """Notes that an operation has its result, or has been replayed; `changed` unless it failed or was skipped."""
        changes = changed and item.kind is not None and item.kind.changes_run
        stepped = changes and item.kind is not None and item.kind.is_step
        self.progress = self.progress.after(item.seq_id, changed=changes, stepped=stepped)
        self.used_at = time.monotonic()
