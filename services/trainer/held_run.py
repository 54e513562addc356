"""A training run that this worker holds: its lease, and what has been read of its log.

Entries wait in two queues, one behind the other: `unread`, as they lie in the log, and `ready`, with their jobs in
memory. Both are bounded, so a run with a long log costs no more than one with a short one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from services.core.errors import PlatformError
from services.core.run_log import Lease, LogEntry
from services.trainer.planner import BACKWARD_COST, Waiting
from tinker_proto.internal.v1 import job_pb2

READ_AHEAD = 32
"""A run's log is read on while fewer of its entries than this wait here."""

WITHOUT_EFFECT = frozenset({"forward", "save_state", "save_weights_for_sampler"})
"""Requests that leave a run as it was: a replay passes over them."""

_PASSES = {"forward": 1, "forward_backward": BACKWARD_COST}


@dataclass(frozen=True)
class Ready:
    """An entry of the log with its job in memory."""

    seq_id: int

    job: job_pb2.Job | PlatformError | None
    """Why there is none, if it is lost; None in the place of an operation that was refused."""

    waiting: Waiting
    """What the planner needs to know."""

    replay: bool
    """Whether it had its result before this worker took the run."""


@dataclass
class HeldRun:
    """A run whose lease this worker holds."""

    lease: Lease

    replay_until: int
    """Everything up to this seq_id had its result before this worker took the run."""

    skipped: frozenset[int]
    """What of that changed nothing."""

    tenant: str = ""
    """Whose it is; known from the first job that was read."""

    position: int = -1
    """seq_id of the newest entry that has been read."""

    unread: deque[LogEntry] = field(default_factory=deque)
    ready: deque[Ready] = field(default_factory=deque)

    is_full: bool = False
    """Whether the reader has left this run's log out because enough of it waits here."""

    lost: PlatformError | None = None
    """Why its past cannot be rebuilt; its operations fail with this."""

    @property
    def entries_here(self) -> int:
        """Entries that have been read and not been carried out."""
        return len(self.unread) + len(self.ready)

    def wants_job(self, budget: int) -> bool:
        """Whether the next job should be in memory: a cycle's worth is enough, but a run's head always is."""
        return bool(self.unread) and (not self.ready or sum(item.waiting.cost for item in self.ready) < budget)

    def add_job(self, entry: LogEntry, job: job_pb2.Job | PlatformError | None) -> None:
        """Puts an entry's job behind those that are ready; one without effect in a past that is done is dropped."""
        replay = entry.seq_id <= self.replay_until
        kind = job.WhichOneof("request") if isinstance(job, job_pb2.Job) else None
        if replay and (entry.seq_id in self.skipped or kind in WITHOUT_EFFECT):
            return
        cost = 0
        if isinstance(job, job_pb2.Job) and kind in _PASSES:
            request = job.forward_backward if kind == "forward_backward" else job.forward
            tokens = sum(len(chunk.encoded_text.tokens) for d in request.data for chunk in d.model_input.chunks)
            cost = _PASSES[kind] * tokens
        if isinstance(job, job_pb2.Job):
            self.tenant = job.tenant
        waiting = Waiting(self.tenant, cost, joins=kind in _PASSES and not replay)
        self.ready.append(Ready(entry.seq_id, job, waiting, replay))

    def run_head_alone(self) -> None:
        """Has the first ready operation carried out on its own."""
        head = self.ready[0]
        self.ready[0] = replace(head, waiting=replace(head.waiting, joins=False))
