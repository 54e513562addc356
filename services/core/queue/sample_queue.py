"""Sampling queue of each base model: operations that wait, in fair turns, and jobs under way.

A sampler takes as many jobs as it has free slots, keeps them by its heartbeat, and removes each with its result. Turns
are fair between tenants: many requests of one tenant delay only that tenant. A sampler without free slots still takes
the next job of a tenant that waits for nothing yet: its engine gives it a turn beside what runs. The jobs of a dead
sampler go to others; the first result counts, and the same seed gives the same tokens on every sampler. A job is left
to the sampler that used its adapter last if that one waits for work, never if it is busy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection
from services.core.queue.enqueueing import MAX_ATTEMPTS, raise_if_refused, stored_keyless_error, worker_died_error
from services.core.queue.limits import LoadLimits
from services.core.queue.operations import Result, accepted_operation
from services.core.queue.payloads import Payloads
from services.core.queue.streams import StreamEntry
from services.core.retention import KEEP_FINISHED_MS
from services.core.unnamed_weights import weights_gone_error
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import operation_pb2

KEEP_USER_MS = 3_600_000

# Time for a sampler to ask again. Short, because jobs are left to a dead sampler for as long as it counts as waiting.
WAIT_GRACE_MS = 250

LOOKED_AT = 128
"""Waiting jobs among which a sampler without free slots looks for newcomers; these come early in the order of turns."""


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
        cost: int,
        limits: LoadLimits,
    ) -> operation_pb2.Operation | None:
        """Accepts a job that may cost up to `cost` >= 1 tokens; returns None if it was known already.

        Raises:
            AlreadyExistsError: its seq_id was used for a different request.
            NotFoundError: the unnamed weights that it samples from are gone.
            ResourceExhaustedError: a limit of `limits` is reached.
        """
        content = job.SerializeToString()
        packed = await self._payloads.pack("jobs", content)
        keys = [
            keyspace.operation(job.operation),
            keyspace.sample_waiting(base_model),
            keyspace.sample_jobs(base_model),
            keyspace.sample_shares(base_model),
            keyspace.sample_wake(base_model),
        ]
        arguments: list[str | bytes | int] = [job.operation, packed, digest, method, job.tenant, base_model]
        arguments += [job.checkpoint_location, max(job.sample.num_samples, 1), cost, len(content)]
        reply = await self._connection.run("enqueue_sample", keys, [*arguments, *limits.of_sampling()])
        if reply[0] == b"accepted":
            return accepted_operation(job.operation, method, reply[1], reply[2])
        await self._payloads.discard(packed)
        if reply[0] == b"gone":
            raise weights_gone_error(job.checkpoint_location)
        raise_if_refused(reply, job.operation)
        return None

    async def join(self, base_model: str) -> None:
        """Creates the queue's consumer group if there is none."""
        group, queue = keyspace.SAMPLERS_GROUP, keyspace.sample_queue(base_model)
        await streams.make_group(self._connection.commands, group, queue)

    async def adopt(self, base_model: str, aliases: Sequence[str]) -> None:
        """Moves what waits under aliases, as what was asked for when one of them was the first name, to the queue."""
        for alias in aliases:
            keys = [
                keyspace.sample_waiting(alias),
                keyspace.sample_jobs(alias),
                keyspace.sample_shares(alias),
                keyspace.sample_pace(alias),
                keyspace.sample_queue(alias),
                keyspace.sample_waiting(base_model),
                keyspace.sample_jobs(base_model),
                keyspace.sample_shares(base_model),
                keyspace.sample_wake(base_model),
            ]
            await self._connection.run("adopt_samples", keys, [keyspace.operation(""), base_model])

    async def take(self, worker: str, base_model: str, *, free: int, block_ms: int) -> list[SampleEntry]:
        """Takes jobs for `free` sequences, at most one job over; waits up to `block_ms` if there are none."""
        wake, queue = keyspace.sample_wake(base_model), keyspace.sample_queue(base_model)
        keys = [
            keyspace.sample_waiting(base_model),
            keyspace.sample_jobs(base_model),
            keyspace.sample_shares(base_model),
            wake,
            queue,
            keyspace.sampler_free(worker),
            keyspace.sample_vacancy(base_model),
        ]
        prefixes = [keyspace.operation(""), keyspace.adapter_user(""), keyspace.sampler_free("")]
        arguments: list[str | bytes | int] = [worker, free, keyspace.SAMPLERS_GROUP, block_ms + WAIT_GRACE_MS]
        newest, *taken = await self._connection.run("take_samples", keys, [*arguments, *prefixes])
        if not taken:
            await streams.read(self._connection.blocking, {wake: newest.decode()}, count=1, block_ms=block_ms)
        return [_decode(streams.entry_of(queue, entry)) for entry in taken]

    async def take_newcomers(
        self, worker: str, base_model: str, *, waiting_tenants: Collection[str], most: int
    ) -> list[SampleEntry]:
        """Takes jobs for a sampler without free slots: at most one of each tenant, and `most` in all.

        Args:
            worker: the sampler.
            base_model: its base model.
            waiting_tenants: tenants of which it takes none, because they wait for their turn already.
            most: most jobs to take; none if it is not positive.
        """
        queue = keyspace.sample_queue(base_model)
        keys = [keyspace.sample_waiting(base_model), keyspace.sample_jobs(base_model), queue]
        keys.append(keyspace.sample_vacancy(base_model))
        arguments: list[str | bytes | int] = [worker, keyspace.SAMPLERS_GROUP, keyspace.operation(""), most, LOOKED_AT]
        taken = await self._connection.run("take_newcomers", keys, [*arguments, *sorted(waiting_tenants)])
        return [_decode(streams.entry_of(queue, entry)) for entry in taken]

    async def wake_position(self, base_model: str) -> str:
        """Id of the newest entry of the wake stream."""
        return await streams.last_id(self._connection.commands, keyspace.sample_wake(base_model))

    async def woken_after(self, base_model: str, position: str) -> str:
        """Waits some seconds until jobs are queued; returns the new position in the wake stream."""
        wake = keyspace.sample_wake(base_model)
        entries = await streams.read(self._connection.blocking, {wake: position}, count=1, block_ms=10_000)
        return entries[-1].entry_id if entries else position

    async def take_over(self, worker: str, base_model: str, *, idle_ms: int, count: int) -> list[SampleEntry]:
        """Takes jobs whose sampler has been silent for `idle_ms`; never retried, because that may change meanwhile."""
        queue = keyspace.sample_queue(base_model)
        taken = await streams.take_over(
            self._connection.blocking, keyspace.SAMPLERS_GROUP, worker, queue, idle_ms=idle_ms, count=count
        )
        return [_decode(entry) for entry in taken]

    async def keep(self, worker: str, base_model: str, entries: Sequence[SampleEntry]) -> None:
        """Renews a sampler's jobs under way."""
        queue = keyspace.sample_queue(base_model)
        ids = [entry.entry_id for entry in entries]
        await streams.keep(self._connection.commands, keyspace.SAMPLERS_GROUP, worker, queue, ids)

    async def read_job(self, entry: SampleEntry) -> job_pb2.Job:
        """The job of an entry.

        Raises:
            DataLossError: its blob is gone.
        """
        return await self._payloads.read_job(entry.packed_job)

    async def begin(self, worker: str, entry: SampleEntry) -> bool:
        """Marks a job as begun by a sampler, which becomes its adapter's last user.

        Returns False if it has its result already: cancelled, or finished by another sampler.
        """
        keys = [keyspace.operation(entry.operation), keyspace.EVENTS, keyspace.DEAD]
        keys.append(keyspace.adapter_user(entry.location))
        arguments: list[str | bytes | int] = [
            entry.operation,
            MAX_ATTEMPTS,
            worker_died_error(entry.operation),
            KEEP_FINISHED_MS,
            worker,
            entry.location,
            KEEP_USER_MS,
            stored_keyless_error(entry.operation),
        ]
        return bool(await self._connection.run("begin_sample", keys, arguments) == b"run")

    async def drop(self, base_model: str, entry: SampleEntry) -> None:
        """Removes a job that already has its result from the queue."""
        queue = keyspace.sample_queue(base_model)
        await streams.remove(self._connection.commands, keyspace.SAMPLERS_GROUP, queue, entry.entry_id)
        await self._payloads.discard(entry.packed_job)

    async def complete(self, base_model: str, entry: SampleEntry, result: Result) -> None:
        """Records the result and removes the job and its blob; a second result changes nothing."""
        keys = [
            keyspace.operation(entry.operation),
            keyspace.sample_queue(base_model),
            keyspace.EVENTS,
            keyspace.sample_waiting(base_model),
            keyspace.sample_pace(base_model),
        ]
        arguments: list[str | bytes | int] = [keyspace.SAMPLERS_GROUP, entry.entry_id, entry.operation, result.state]
        await self._connection.run(
            "complete_sample", keys, [*arguments, result.field, result.content, KEEP_FINISHED_MS]
        )
        await self._payloads.discard(entry.packed_job)


def _decode(entry: StreamEntry) -> SampleEntry:
    fields = entry.fields
    return SampleEntry(entry.entry_id, fields[b"operation"].decode(), fields[b"entry"], fields[b"location"].decode())
