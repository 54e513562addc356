"""Unfinished operations of a tenant, which end when its last API key is revoked.

What is not found here, because it was accepted at that very moment or Redis went away, ends when a worker would begin
it: see `end_if_keyless` in the scripts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import structlog

from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from services.core.queue.enqueueing import keyless_error
from services.core.queue.operations import OperationStore
from tinker_proto.internal.v1 import job_pb2

_AT_ONCE = 1000
_CANCELLED_AT_ONCE = 64

_log = structlog.get_logger(__name__)


class TenantWork:
    """Unfinished operations of one Redis server, by tenant."""

    def __init__(self, connection: RedisConnection, operations: OperationStore) -> None:
        self._commands = connection.commands
        self._operations = operations

    async def end(self, tenant: str) -> None:
        """Cancels a tenant's operations that wait, and those that sample; one that trains right now ends by itself."""
        try:
            async for names in self._unfinished(tenant):
                for start in range(0, len(names), _CANCELLED_AT_ONCE):
                    some = [OperationName.parse(name) for name in names[start : start + _CANCELLED_AT_ONCE]]
                    await asyncio.gather(*(self._operations.cancel(name, keyless_error(str(name))) for name in some))
        except TRANSIENT_ERRORS as error:
            _log.warning("not all work of a tenant without a key was cancelled", tenant=tenant, error=str(error))

    async def _unfinished(self, tenant: str) -> AsyncIterator[Sequence[str]]:
        for base_model in await self._commands.hkeys(keyspace.base_models(job_pb2.WORKER_KIND_SAMPLER)):
            taken = await self._commands.xrange(keyspace.sample_queue(base_model.decode()))
            waiting = await self._commands.zrange(keyspace.sample_waiting(base_model.decode()), 0, -1)
            names = [fields[b"operation"].decode() for _, fields in taken] + [name.decode() for name in waiting]
            for start in range(0, len(names), _AT_ONCE):
                yield list(await self._operations.states(names[start : start + _AT_ONCE], tenant))
        for run in await self._commands.zrange(keyspace.tenant_runs(tenant), 0, -1):
            yield await self._unfinished_of_run(run.decode())

    async def _unfinished_of_run(self, run: str) -> list[str]:
        next_seq, done_seq = await self._commands.hmget(keyspace.run_meta(run), "next_seq", "done_seq")
        early = await self._commands.hkeys(keyspace.run_early(run))
        queued = range(int(done_seq or -1) + 1, int(next_seq or 0))
        return [str(OperationName(run, seq_id)) for seq_id in [*queued, *map(int, early)]]
