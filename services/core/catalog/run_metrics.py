"""Metrics history of each training run: one entry an operation.

An entry is written together with its operation's result, so retries and replays never duplicate it. Each run keeps its
last `KEPT` entries or a few more.
"""

from __future__ import annotations

from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection, Write
from services.core.queue.run_log import entry_position
from tinker_proto.v1 import training_pb2

KEPT = 100_000


class RunMetrics:
    """The metrics of the runs of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def after(self, run: str, seq_id: int, count: int) -> tuple[list[training_pb2.TrainingMetrics], bool]:
        """A run's entries behind operation `seq_id` (-1: from the beginning), oldest first, and whether more follow."""
        position = entry_position(seq_id)
        found = await self._commands.xrange(keyspace.run_metrics(run), min=f"({position}", count=count + 1)
        entries = [training_pb2.TrainingMetrics.FromString(fields[b"record"]) for _, fields in found[:count]]
        return entries, len(found) > count


def metrics_write(run: str, entry: training_pb2.TrainingMetrics) -> Write:
    """The write that adds an operation's metrics, made visible with its result."""
    position = entry_position(entry.seq_id)
    key = keyspace.run_metrics(run)
    return ("XADD", key, "MAXLEN", "~", KEPT, position, "record", entry.SerializeToString())
