"""The sampling queue of each base model: many consumers, no order.

Any sampler takes a job when it has room, keeps it by its heartbeat, and takes it off with the result. A sampler that
dies loses its jobs to the others; the first result counts, and the same seed gives the same tokens wherever it runs.
Of several samplers that wait for work, a job goes to the one that used its adapter last: it is taken in that sampler's
name when it is enqueued, and put into its inbox. If that one is busy, nobody waits for it: any other takes the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.core import keyspace, streams
from services.core.acceptance import MAX_ATTEMPTS, death_notice, raise_if_refused
from services.core.connection import RedisConnection
from services.core.operations import KEEP_FINISHED_MS, Result, accepted_operation
from services.core.payloads import Payloads
from services.core.streams import StreamEntry
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import operation_pb2

KEEP_HOLDER_MS = 3_600_000
KEEP_INBOX_MS = 3_600_000

# What a sampler may take to ask again. Little, because a job that goes to a dead one waits for its lease to end.
ROOM_GRACE_MS = 250


@dataclass(frozen=True)
class SampleEntry:
    """One job on a sampling queue."""

    entry_id: str
    operation: str
    packed_job: bytes
    location: str
    """Of the adapter; empty for the base model."""


class SampleQueues:
    """All sampling queues of one Redis server."""

    def __init__(self, connection: RedisConnection, payloads: Payloads) -> None:
        self._connection = connection
        self._payloads = payloads

    async def enqueue(
        self,
        job: job_pb2.Job,
        *,
        digest: str,
        method: str,
        base_model: str,
        max_waiting: int,
    ) -> operation_pb2.Operation | None:
        """Accepts a job; returns None if it was known already.

        Raises:
            AlreadyExistsError: its seq_id was used for a different request.
            ResourceExhaustedError: the queue has `max_waiting` jobs.
        """
        packed = await self._payloads.pack("jobs", job.SerializeToString())
        location = job.checkpoint_location
        keys = [
            keyspace.operation(job.operation),
            keyspace.sample_queue(base_model),
            keyspace.adapter_holder(location),
        ]
        arguments: list[str | bytes | int] = [job.operation, packed, digest, method, job.tenant, max_waiting]
        prefixes = [keyspace.sampler_room(""), keyspace.sampler_inbox("")]
        sequences = max(job.sample.num_samples, 1)
        reply = await self._connection.run(
            "enqueue_sample", keys, [*arguments, location, sequences, keyspace.SAMPLERS_GROUP, *prefixes]
        )
        if reply[0] == b"accepted":
            return accepted_operation(job.operation, method, reply[1], reply[2])
        await self._payloads.discard(packed)
        raise_if_refused(reply, job.operation)
        return None

    async def join(self, base_model: str) -> None:
        """Makes the queue's consumer group if it is the first time."""
        group, queue = keyspace.SAMPLERS_GROUP, keyspace.sample_queue(base_model)
        await streams.make_group(self._connection.commands, group, queue)

    async def take(self, worker: str, base_model: str, *, count: int, block_ms: int) -> list[SampleEntry]:
        """Waits up to `block_ms` for jobs and takes at most `count` of the queue's, and those that are in the inbox."""
        queue, room, inbox = (
            keyspace.sample_queue(base_model),
            keyspace.sampler_room(worker),
            keyspace.sampler_inbox(worker),
        )
        group = keyspace.SAMPLERS_GROUP
        await self._connection.run(
            "wait_for_samples", [room, inbox], [count, block_ms + ROOM_GRACE_MS, group, KEEP_INBOX_MS]
        )
        taken = await streams.read_groups(
            self._connection.blocking, group, worker, [inbox, queue], count=count, block_ms=block_ms
        )
        pipeline = self._connection.commands.pipeline(transaction=True)
        pipeline.delete(room)
        for entry in taken:
            if entry.stream == inbox:
                pipeline.xack(inbox, group, entry.entry_id)
                pipeline.xdel(inbox, entry.entry_id)
        await pipeline.execute()
        return [_decode(entry) for entry in taken]

    async def take_over(self, worker: str, base_model: str, *, idle_ms: int, count: int) -> list[SampleEntry]:
        """Takes jobs whose sampler has not been heard of for `idle_ms`."""
        queue = keyspace.sample_queue(base_model)
        taken = await streams.take_over(
            self._connection.commands, keyspace.SAMPLERS_GROUP, worker, queue, idle_ms=idle_ms, count=count
        )
        return [_decode(entry) for entry in taken]

    async def keep(self, worker: str, base_model: str, entries: Sequence[SampleEntry]) -> None:
        """Says that `worker` is still at work on its jobs."""
        queue = keyspace.sample_queue(base_model)
        ids = [entry.entry_id for entry in entries]
        await streams.keep(self._connection.commands, keyspace.SAMPLERS_GROUP, worker, queue, ids)

    async def read_job(self, entry: SampleEntry) -> job_pb2.Job:
        """The job of an entry.

        Raises:
            DataLossError: its blob is gone.
        """
        return job_pb2.Job.FromString(await self._payloads.unpack(entry.packed_job))

    async def begin(self, worker: str, entry: SampleEntry) -> bool:
        """Marks a job as begun by a sampler, which will hold its adapter.

        Returns False if it has its result already: cancelled, or finished by another sampler.
        """
        keys = [keyspace.operation(entry.operation), keyspace.EVENTS, keyspace.DEAD]
        keys.append(keyspace.adapter_holder(entry.location))
        arguments: list[str | bytes | int] = [
            entry.operation,
            MAX_ATTEMPTS,
            death_notice(entry.operation),
            KEEP_FINISHED_MS,
            worker,
            entry.location,
            KEEP_HOLDER_MS,
        ]
        return bool(await self._connection.run("begin_sample", keys, arguments) == b"run")

    async def drop(self, base_model: str, entry: SampleEntry) -> None:
        """Takes a job that has its result already off the queue."""
        queue = keyspace.sample_queue(base_model)
        await streams.remove(self._connection.commands, keyspace.SAMPLERS_GROUP, queue, entry.entry_id)
        await self._payloads.discard(entry.packed_job)

    async def complete(self, base_model: str, entry: SampleEntry, result: Result) -> None:
        """Records the result, takes the job off the queue and drops its blob; a second result changes nothing."""
        keys = [keyspace.operation(entry.operation), keyspace.sample_queue(base_model), keyspace.EVENTS]
        arguments: list[str | bytes | int] = [keyspace.SAMPLERS_GROUP, entry.entry_id, entry.operation, result.state]
        await self._connection.run(
            "complete_sample", keys, [*arguments, result.field, result.content, KEEP_FINISHED_MS]
        )
        await self._payloads.discard(entry.packed_job)


def _decode(entry: StreamEntry) -> SampleEntry:
    """An entry of a queue or of an inbox, which says where in the queue it was."""
    fields = entry.fields
    entry_id = fields[b"taken"].decode() if b"taken" in fields else entry.entry_id
    return SampleEntry(entry_id, fields[b"operation"].decode(), fields[b"entry"], fields.get(b"location", b"").decode())
