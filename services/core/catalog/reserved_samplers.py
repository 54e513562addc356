"""Reserved sampling sessions: requested together with a save, opened when the save's result is fetched.

The reservation is made before the save is accepted, so that every gateway that returns the result finds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection

KEEP = timedelta(days=30)


@dataclass(frozen=True)
class ReservedSampler:
    """The sampling session that a save is for, and whether later inflight saves replace its weights."""

    sampling_session_seq_id: int
    inflight: bool


class ReservedSamplers:
    """Reservations of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def reserve(self, operation: str, wanted: ReservedSampler) -> None:
        """Reserves a sampling session for a save."""
        key = keyspace.reserved_sampler(operation)
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.hsetnx(key, "sampling_session_seq_id", wanted.sampling_session_seq_id)
        pipeline.hsetnx(key, "inflight", int(wanted.inflight))
        pipeline.expire(key, KEEP)
        await pipeline.execute()

    async def of(self, operation: str) -> ReservedSampler | None:
        """The reservation that belongs to a save; None if there is none."""
        record = await self._commands.hgetall(keyspace.reserved_sampler(operation))
        if not record:
            return None
        return ReservedSampler(int(record[b"sampling_session_seq_id"]), record[b"inflight"] == b"1")
