"""Pins: references that keep the files of a checkpoint after it was deleted, overwritten, or has expired.

A sampling session pins what it samples from until an hour after its session has ended, for the operations it has
queued; a session that is silent for a day loses its pins. An operation that has loaded a checkpoint pins it until its
run's log is trimmed past the operation, because a replay loads it again.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.storage.checkpoint_store import CheckpointStore

KEEP_AFTER_END = timedelta(hours=1)
KEEP_SILENT = timedelta(days=1)
LOOK_AGAIN = timedelta(minutes=1)
_AT_ONCE = 1000


class Pins:
    """The pins of one Redis server."""

    def __init__(self, connection: RedisConnection, checkpoints: CheckpointStore) -> None:
        self._commands = connection.commands
        self._checkpoints = checkpoints

    async def remove_unpinned(self) -> int:
        """Deletes the files of unreferenced, unpinned locations; returns how many. Safe to run concurrently."""
        now_ms = int(time.time() * 1000)
        due = await self._commands.zrangebyscore(keyspace.UNREFERENCED, "-inf", now_ms, start=0, num=_AT_ONCE)
        removed = [await self.remove_if_unpinned(location.decode()) for location in due]
        return sum(removed)

    async def remove_if_unpinned(self, location: str) -> bool:
        """Deletes the files of an unreferenced location unless it is pinned; returns whether it did."""
        if await self.are_needed(location):
            look_again_ms = int((time.time() + LOOK_AGAIN.total_seconds()) * 1000)
            await self._commands.zadd(keyspace.UNREFERENCED, {location: look_again_ms}, xx=True)
            return False
        await asyncio.to_thread(self._checkpoints.delete, location)
        owner = await self._commands.hget(keyspace.training_run(location.partition("/")[0]), "tenant")
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.delete(keyspace.PINS + location)
        pipeline.zrem(keyspace.UNREFERENCED, location)
        if owner is not None:
            pipeline.hdel(keyspace.stored_sizes(owner.decode()), location)
        await pipeline.execute()
        return True

    async def forget_gone(self) -> None:
        """Removes expired pins: those of a checkpoint that is never deleted would only grow."""
        async for key in self._commands.scan_iter(match=f"{keyspace.PINS}*", count=_AT_ONCE):
            gone = [member for member in await self._commands.smembers(key) if not await self._needs(member.decode())]
            if gone:
                await self._commands.srem(key, *gone)

    async def are_needed(self, location: str) -> bool:
        """Whether a location has a pin that counts."""
        for pinned_by in await self._commands.smembers(keyspace.PINS + location):
            if await self._needs(pinned_by.decode()):
                return True
        return False

    async def is_known(self, location: str) -> bool:
        """Whether it is a checkpoint's or of unnamed weights, or its deletion is pending; other files are garbage."""
        path = f"tinker://{location.rpartition('/')[0]}"
        pipeline = self._commands.pipeline(transaction=False)
        pipeline.hget(keyspace.checkpoint(path), "location")
        pipeline.zscore(keyspace.UNREFERENCED, location)
        pipeline.exists(keyspace.unnamed_weights(location))
        named, unreferenced, is_unnamed = await pipeline.execute()
        return named == location.encode() or unreferenced is not None or bool(is_unnamed)

    async def _needs(self, pinned_by: str) -> bool:
        if ":" in pinned_by:
            operation = OperationName.parse(pinned_by)
            return await self._may_be_replayed(operation.scope, operation.seq_id)
        seen, ended = await self._commands.hmget(keyspace.session(pinned_by), "seen", "ended")
        if ended is not None:
            return time.time() - float(ended) < KEEP_AFTER_END.total_seconds()
        return seen is not None and time.time() - float(seen) < KEEP_SILENT.total_seconds()

    async def _may_be_replayed(self, run: str, seq_id: int) -> bool:
        """Whether an operation is still running, or is done and not covered by a snapshot yet."""
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.hget(keyspace.run_meta(run), "done_seq")
        pipeline.hexists(keyspace.run_sources(run), seq_id)
        done_seq_id, is_source = await pipeline.execute()
        return is_source or int(done_seq_id if done_seq_id is not None else -1) < seq_id
