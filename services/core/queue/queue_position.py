"""Where an operation stands that has not begun, and about how long that will take.

Nothing is kept for this but each queue's pace, which the scripts note when an operation ends; the rest is read off the
queue as it is now.
"""

from __future__ import annotations

from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tinker_proto.v1 import operation_pb2

WAITING = frozenset({operation_pb2.OPERATION_STATE_PARKED, operation_pb2.OPERATION_STATE_QUEUED})


class QueuePlaces:
    """Reads places in the queues of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def of(self, operation: operation_pb2.Operation) -> operation_pb2.QueuePlace | None:
        """The place of an operation; None if it has just got its turn."""
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
        place = operation_pb2.QueuePlace(operations_ahead=max(ahead, 0))
        busy_ms, ended = await self._commands.hmget(queue, "busy", "ended")
        if ended is not None and operation.state == operation_pb2.OPERATION_STATE_QUEUED:
            place.estimated_wait.FromMilliseconds(round(place.operations_ahead * float(busy_ms) / float(ended)))
        return place
