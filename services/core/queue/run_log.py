"""The log of each training run, and the lease that makes one trainer its only consumer.

The gateway enqueues; the lease's holder reads, begins and completes, strictly in seq_id order. Every change is one
script that checks the holder's epoch, so a trainer that resumes after its lease has moved changes nothing. Finished
entries stay in the log: a new holder replays it to rebuild what the old one had in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from services.core.errors import PlatformError
from services.core.names import OperationName
from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection, Write
from services.core.queue.enqueueing import MAX_ATTEMPTS, raise_if_refused, stored_keyless_error, worker_died_error
from services.core.queue.limits import LoadLimits
from services.core.queue.operations import Result, accepted_operation
from services.core.queue.payloads import Payloads
from services.core.queue.streams import StreamEntry
from services.core.retention import KEEP_FINISHED_MS
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import operation_pb2


@dataclass(frozen=True)
class Lease:
    """The right to carry out a run's operations; `epoch` is its fencing token."""

    run: str
    epoch: int
    waiting_entry: str


@dataclass(frozen=True)
class LogEntry:
    """One job in a run's log; `packed_job` is empty for an operation that was refused."""

    seq_id: int
    packed_job: bytes


class Beginning(Enum):
    """Result of `begin_together`."""

    BEGUN = "run"
    MUST_RUN_ALONE = "alone"
    FINISHED_ALREADY = "skip"


class FencedError(Exception):
    """The lease has moved to another worker."""


class RunLogs:
    """All run logs of one Redis server."""

    def __init__(self, connection: RedisConnection, payloads: Payloads) -> None:
        self._connection = connection
        self._payloads = payloads

    async def next_seq_id(self, run: str) -> int:
        """The smallest seq_id that has not arrived yet."""
        return int(await self._connection.commands.hget(keyspace.run_meta(run), "next_seq") or 0)

    async def done_seq_id(self, run: str) -> int:
        """The last seq_id of those that have their results; -1 before the first."""
        done = await self._connection.commands.hget(keyspace.run_meta(run), "done_seq")
        return -1 if done is None else int(done)

    async def skipped_seq_ids(self, run: str) -> frozenset[int]:
        """The operations that changed nothing and are left out of a replay."""
        members = await self._connection.commands.smembers(keyspace.run_skipped(run))
        return frozenset(int(member) for member in members)

    async def enqueue(
        self,
        job: job_pb2.Job,
        *,
        digest: str,
        method: str,
        base_model: str,
        limits: LoadLimits,
        refusal: PlatformError | None = None,
    ) -> operation_pb2.Operation | None:
        """Accepts a job, or records its refusal at its seq_id; returns None if the operation is known already.

        Raises:
            AlreadyExistsError: its seq_id was used for a different request.
            FailedPreconditionError: its seq_id was used so long ago that the result is gone.
            ResourceExhaustedError: a limit of `limits` is reached.
        """
        name = OperationName.parse(job.operation)
        run = name.scope
        content = job.SerializeToString()
        packed = b"" if refusal else await self._payloads.pack("jobs", content)
        error = refusal.to_operation_error().SerializeToString() if refusal else b""
        keys = [
            keyspace.operation(job.operation),
            keyspace.run_log(run),
            keyspace.run_meta(run),
            keyspace.run_early(run),
            keyspace.run_skipped(run),
            keyspace.waiting_runs(base_model),
            keyspace.EVENTS,
        ]
        arguments: list[str | bytes | int] = [name.seq_id, job.operation, run, packed, digest, method, job.tenant]
        arguments += [error, KEEP_FINISHED_MS, len(content), *limits.of_training()]
        reply = await self._connection.run("enqueue_run", keys, arguments)
        if reply[0] == b"accepted":
            return accepted_operation(job.operation, method, reply[1], reply[2])
        await self._payloads.discard(packed)
        raise_if_refused(reply, job.operation)
        return None

    async def claim(self, worker: str, run: str, waiting_entry: str, lease_ms: int) -> Lease | None:
        """Takes a run's lease; None if another worker holds it."""
        epoch = await self._connection.run("claim_run", [keyspace.run_own(run)], [worker, lease_ms])
        return Lease(run, int(epoch), waiting_entry) if epoch else None

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> list[Lease]:
        """Extends leases; returns those that are still held."""
        if not leases:
            return []
        keys = [keyspace.run_own(lease.run) for lease in leases]
        held = await self._connection.run("renew_runs", keys, [lease_ms, *(lease.epoch for lease in leases)])
        return [lease for lease, kept in zip(leases, held, strict=True) if kept]

    async def release(self, lease: Lease, base_model: str) -> None:
        """Gives a lease back; a run with operations left becomes a waiting run at once."""
        keys = [keyspace.run_own(lease.run), keyspace.run_meta(lease.run), keyspace.waiting_runs(base_model)]
        arguments: list[str | bytes | int] = [lease.epoch, keyspace.TRAINERS_GROUP, lease.waiting_entry, lease.run]
        await self._connection.run("release_run", keys, arguments)

    async def entries(self, run: str, after: int, count: int) -> list[LogEntry]:
        """Entries of a log after seq_id `after`, oldest first."""
        position, log = entry_position(after), keyspace.run_log(run)
        return [
            decode_entry(e) for e in await streams.entries(self._connection.commands, log, after=position, count=count)
        ]

    async def read_job(self, entry: LogEntry) -> job_pb2.Job:
        """The job of an entry.

        Raises:
            DataLossError: its blob is gone.
        """
        return await self._payloads.read_job(entry.packed_job)

    async def begin(self, lease: Lease, seq_id: int) -> bool:
        """Marks an operation as begun; False if it has its result already (refused, cancelled, finished, dead).

        Raises:
            FencedError: the lease has moved.
        """
        name = OperationName(lease.run, seq_id)
        keys = [
            keyspace.run_own(lease.run),
            keyspace.operation(str(name)),
            keyspace.run_skipped(lease.run),
            keyspace.DEAD,
            keyspace.EVENTS,
        ]
        arguments: list[str | bytes | int] = [lease.epoch, str(name), seq_id, MAX_ATTEMPTS]
        arguments += [worker_died_error(str(name)), KEEP_FINISHED_MS, stored_keyless_error(str(name))]
        reply = await self._connection.run("begin_operation", keys, arguments)
        if reply == b"fenced":
            raise FencedError(lease.run)
        return bool(reply == b"run")

    async def begin_together(self, lease: Lease, seq_id: int) -> Beginning:
        """Marks an operation as begun together with operations of other runs.

        If the worker crashes now, any of them may be the cause: none counts as an attempt, and each is begun on its own
        the next time, as this one must be if it has been begun before.

        Raises:
            FencedError: the lease has moved.
        """
        name = OperationName(lease.run, seq_id)
        keys = [
            keyspace.run_own(lease.run),
            keyspace.operation(str(name)),
            keyspace.run_skipped(lease.run),
            keyspace.EVENTS,
        ]
        arguments: list[str | bytes | int] = [lease.epoch, str(name), seq_id, KEEP_FINISHED_MS]
        reply = await self._connection.run("begin_together", keys, [*arguments, stored_keyless_error(str(name))])
        if reply == b"fenced":
            raise FencedError(lease.run)
        return Beginning(reply.decode())

    async def skip(self, lease: Lease, seq_id: int) -> None:
        """Advances the log past an operation that has its result already.

        Raises:
            FencedError: the lease has moved.
        """
        await self.complete(lease, seq_id, Result("", "", b""))

    async def complete(self, lease: Lease, seq_id: int, result: Result, writes: Sequence[Write] = ()) -> None:
        """Records an operation's result and advances the log past it; a second result changes nothing.

        Raises:
            FencedError: the lease has moved; nothing was written.
        """
        name = OperationName(lease.run, seq_id)
        keys = [
            keyspace.run_own(lease.run),
            keyspace.run_meta(lease.run),
            keyspace.operation(str(name)),
            keyspace.run_skipped(lease.run),
            keyspace.EVENTS,
        ]
        arguments: list[str | bytes | int] = [lease.epoch, str(name), seq_id, result.state, result.field]
        arguments += [result.content, KEEP_FINISHED_MS]
        for write in writes:
            arguments += [len(write), *write]
        if await self._connection.run("complete_run", keys, arguments) == b"fenced":
            raise FencedError(lease.run)


def entry_position(seq_id: int) -> str:
    """The id of a run's log entry, or the position before the first for -1. Redis has no entry 0-0, hence the 1."""
    return f"{seq_id}-1" if seq_id >= 0 else "0-0"


def decode_entry(entry: StreamEntry) -> LogEntry:
    """A log entry as it is stored."""
    return LogEntry(int(entry.entry_id.partition("-")[0]), entry.fields[b"entry"])
