"""Records of operations: the state and result that a client sees.

A record is one Redis hash, written only by the scripts in lua/. This file reads records, cancels, and turns a result
into the fields that the scripts store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf import any_pb2
from google.protobuf.message import Message

from services.core.errors import CancelledError, NotFoundError, PlatformError
from services.core.names import OperationName
from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection
from services.core.queue.payloads import Payloads
from services.core.queue.queue_position import WAITING, QueuePositions
from services.core.queue.retry import until_reached
from services.core.retention import KEEP_FINISHED, KEEP_FINISHED_MS
from tinker_proto.v1 import operation_pb2

_STATES = {
    b"parked": operation_pb2.OPERATION_STATE_PARKED,
    b"queued": operation_pb2.OPERATION_STATE_QUEUED,
    b"running": operation_pb2.OPERATION_STATE_RUNNING,
    b"succeeded": operation_pb2.OPERATION_STATE_SUCCEEDED,
    b"failed": operation_pb2.OPERATION_STATE_FAILED,
    b"cancelled": operation_pb2.OPERATION_STATE_CANCELLED,
}


@dataclass(frozen=True)
class Result:
    """The one result of an operation, as the scripts store it."""

    state: str
    field: str
    content: bytes


def accepted_operation(name: str, method: str, state: bytes, time_ms: int) -> operation_pb2.Operation:
    """An operation as its record is right after it was accepted."""
    operation = operation_pb2.Operation(name=name, method=method, state=_STATES[state])
    operation.create_time.FromMilliseconds(time_ms)
    return operation


class OperationStore:
    """Operation records of one Redis server."""

    def __init__(self, connection: RedisConnection, payloads: Payloads) -> None:
        self._connection = connection
        self._payloads = payloads
        self._positions = QueuePositions(connection)

    async def result(self, outcome: Message | PlatformError) -> Result:
        """Packs an outcome; a large response goes to the blob store, with retries until it is stored."""
        if isinstance(outcome, PlatformError):
            return Result("failed", "error", outcome.to_operation_error().SerializeToString())
        packed = any_pb2.Any()
        packed.Pack(outcome)
        content = packed.SerializeToString()
        return Result("succeeded", "response", await until_reached(lambda: self._payloads.pack("results", content)))

    async def read(self, names: Sequence[str], tenant: str) -> list[operation_pb2.Operation]:
        """The operations of `tenant` among `names`, in that order; unknown and foreign ones are left out."""
        pipeline = self._connection.commands.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(keyspace.operation(name))
        records = zip(names, await pipeline.execute(), strict=True)
        return [
            await self._decode(name, record) for name, record in records if record.get(b"tenant") == tenant.encode()
        ]

    async def states(self, names: Sequence[str], tenant: str) -> dict[str, operation_pb2.OperationState.ValueType]:
        """The states of the operations of `tenant` among `names`, without their results."""
        pipeline = self._connection.commands.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(keyspace.operation(name), "tenant", "state")
        records = zip(names, await pipeline.execute(), strict=True)
        return {name: _STATES[state] for name, (owner, state) in records if owner == tenant.encode()}

    async def get(self, name: str, tenant: str) -> operation_pb2.Operation:
        """One operation.

        Raises:
            NotFoundError: there is none of this name, or it is another tenant's.
        """
        found = await self.read([name], tenant)
        if not found:
            message = f"there is no operation {name}; results are kept for {KEEP_FINISHED // timedelta(hours=1)} hours"
            raise NotFoundError(message, reason="OPERATION_NOT_FOUND")
        return found[0]

    async def get_with_position(self, name: str, tenant: str) -> operation_pb2.Operation:
        """One operation, with its position in the queue while it waits; raises as `get`."""
        operation = await self.get(name, tenant)
        position = await self._positions.of(operation) if operation.state in WAITING else None
        if position is not None:
            operation.queue_place.CopyFrom(position)
        return operation

    async def cancel(self, name: OperationName) -> bool:
        """Ends an operation with CANCELLED unless it trains or is done; returns whether this call did it."""
        error = CancelledError(f"operation {name} was cancelled")
        keys = [
            keyspace.operation(str(name)),
            keyspace.EVENTS,
            keyspace.run_skipped(name.scope),
            keyspace.CANCELLED,
        ]
        arguments: list[str | bytes | int] = [str(name), name.seq_id, error.to_operation_error().SerializeToString()]
        arguments += [KEEP_FINISHED_MS, "trains" if name.trains else "samples"]
        prefixes = [keyspace.sample_waiting(""), keyspace.sample_jobs("")]
        entry = await self._connection.run("cancel", keys, [*arguments, *prefixes])
        if entry:
            await self._payloads.discard(entry)
        return entry is not None

    async def cancelled_position(self) -> str:
        """Id of the newest entry in the stream of cancelled sampling operations."""
        return await streams.last_id(self._connection.commands, keyspace.CANCELLED)

    async def cancelled_after(self, position: str) -> tuple[str, list[str]]:
        """Waits for sampling operations that are cancelled while they run; returns the new position and their names."""
        entries = await streams.read(
            self._connection.blocking, {keyspace.CANCELLED: position}, count=1000, block_ms=10_000
        )
        return entries[-1].entry_id if entries else position, [entry.fields[b"operation"].decode() for entry in entries]

    async def _decode(self, name: str, record: dict[bytes, bytes]) -> operation_pb2.Operation:
        operation = accepted_operation(name, record[b"method"].decode(), record[b"state"], int(record[b"time"]))
        if b"error" in record:
            operation.error.ParseFromString(record[b"error"])
        elif b"response" in record:
            try:
                operation.response.ParseFromString(await self._payloads.unpack(record[b"response"]))
            except PlatformError as error:
                operation.error.CopyFrom(error.to_operation_error())
        operation.done = operation.WhichOneof("outcome") is not None
        return operation
