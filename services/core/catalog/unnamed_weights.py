"""Catalog of unnamed weights: owner, files, last use, and the sampling operations that need them.

They are kept while an operation that samples from them is queued or under way, for `KEEP_UNUSED_WEIGHTS` after their
last use, and while they are among the newest of their run, or those of its inflight sampling sessions, and the run's
session lives. One script takes an operation in or finds that they are gone, so none is accepted that would miss them.
"""

from __future__ import annotations

import time
from datetime import timedelta

from services.core.catalog.checkpoints import StoredCheckpoint
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection, Write
from services.core.retention import KEEP_NEWEST_WEIGHTS, KEEP_SILENT_SESSION, KEEP_UNUSED_WEIGHTS
from services.core.unnamed_weights import weights_gone_error
from tinker_proto.v1 import checkpoint_pb2

LOOK_AGAIN = timedelta(minutes=1)
_AT_ONCE = 500
_MS = timedelta(milliseconds=1)


class UnnamedWeights:
    """The unnamed weights of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def use(self, location: str, tenant: str) -> StoredCheckpoint:
        """Unnamed weights of `tenant`, kept from here on as after every use.

        Raises:
            NotFoundError: they are gone, or never were this tenant's.
        """
        reply = await self._connection.run("use_unnamed_weights", [keyspace.unnamed_weights(location)], [tenant])
        if reply == b"gone":
            raise weights_gone_error(location)
        record = dict(zip(reply[::2], reply[1::2], strict=True))
        return StoredCheckpoint(checkpoint_pb2.Checkpoint.FromString(record[b"record"]), location)

    async def are_there(self, location: str) -> bool:
        """Whether they have not been removed."""
        return bool(await self._connection.commands.exists(keyspace.unnamed_weights(location)))

    async def remove_unneeded(self) -> None:
        """Removes those that nobody needs, and marks their files for deletion."""
        arguments: list[str | bytes | int] = [
            keyspace.PREFIX,
            KEEP_UNUSED_WEIGHTS // _MS,
            KEEP_NEWEST_WEIGHTS,
            KEEP_SILENT_SESSION // _MS,
            LOOK_AGAIN // _MS,
            _AT_ONCE,
        ]
        keys = [keyspace.UNNAMED_WEIGHTS_DUE, keyspace.UNREFERENCED]
        while await self._connection.run("remove_unnamed_weights", keys, arguments):
            pass


def unnamed_writes(tenant: str, stored: StoredCheckpoint, seq_id: int) -> list[Write]:
    """The writes that add unnamed weights, made visible with the result of their save."""
    location, run = stored.location, stored.checkpoint.training_run_id
    key, now_ms = keyspace.unnamed_weights(location), int(time.time() * 1000)
    record = stored.checkpoint.SerializeToString()
    return [
        ("HSET", key, "tenant", tenant, "record", record, "run", run, "used", now_ms),
        ("ZADD", keyspace.run_unnamed_weights(run), seq_id, location),
        ("ZADD", keyspace.UNNAMED_WEIGHTS_DUE, now_ms + KEEP_UNUSED_WEIGHTS // _MS, location),
        ("HSET", keyspace.stored_sizes(tenant), location, stored.checkpoint.size_bytes),
    ]
