"""Queue position of an operation that has not begun, and an estimate of its wait.

Only each queue's pace is stored, which the scripts update when an operation ends; the rest is read from the queue.
"""

from __future__ import annotations

from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tinker_proto.v1 import operation_pb2

WAITING = frozenset({operation_pb2.OPERATION_STATE_PARKED, operation_pb2.OPERATION_STATE_QUEUED})


class QueuePositions:
    """Reads positions in the queues of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def of(self, operation: operation_pb2.Operation) -> operation_pb2.QueuePlace | None:
        """The queue position of an operation; None if a sampler has just taken it."""
        name = OperationName.parse(operation.name)
        if name.trains:
            queue = keyspace.run_meta(name.scope)
            done = int(await self._commands.hget(queue, "done_seq") or -1)
            ahead = name.seq_id - done - 1
        else:
            base_model = (await self._commands.hget(keyspace.operation(operation.name), "base_model")).decode()
            queue = keyspace.sample_pace(base_model)
            rank = await self._commands.zrank(keyspace.sample_waiting(base_model), operation.name)
            if rank is None:
                return None
            ahead = rank
        position = operation_pb2.QueuePlace(operations_ahead=max(ahead, 0))
        busy_ms, ended = await self._commands.hmget(queue, "busy", "ended")
        if ended is not None and operation.state == operation_pb2.OPERATION_STATE_QUEUED:
            wait_ms = position.operations_ahead * float(busy_ms) / float(ended)
            position.estimated_wait.FromMilliseconds(round(wait_ms))
        return position
