"""Records of operations: the state and result that a client sees.

A record is one Redis hash, written only by the scripts in lua/. This file reads records, cancels, and turns a result
into the fields that the scripts store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from google.protobuf import any_pb2
from google.protobuf.message import EncodeError, Message

from services.core.errors import (
    CancelledError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    PlatformError,
    UnavailableError,
)
from services.core.names import OperationName
from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection
from services.core.queue.payloads import Payloads, sha256_of, size_of
from services.core.queue.queue_position import WAITING, QueuePositions
from services.core.queue.retry import until_reached
from services.core.retention import KEEP_FINISHED, KEEP_FINISHED_MS
from tinker_proto.v1 import operation_pb2

LARGE_BYTES = 1 << 20
"""Responses from this size on are packed in a thread, so that the event loop goes on."""

_log = structlog.get_logger(__name__)

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
        """Packs an outcome; a large response goes to the blob store, with retries until it is stored.

        A response that cannot be put into bytes is that operation's error.
        """
        if not isinstance(outcome, PlatformError):
            try:
                large = outcome.ByteSize() >= LARGE_BYTES
                content = await asyncio.to_thread(_packed, outcome) if large else _packed(outcome)
            except (EncodeError, ValueError, MemoryError) as error:
                _log.error("a response cannot be packed", type=outcome.DESCRIPTOR.full_name, exc_info=error)
                outcome = InternalError("the result is too large to be stored", reason="RESULT_TOO_LARGE")
        if isinstance(outcome, PlatformError):
            return Result("failed", "error", outcome.to_operation_error().SerializeToString())
        return Result("succeeded", "response", await until_reached(lambda: self._payloads.pack("results", content)))

    async def read(
        self, names: Sequence[str], tenant: str, *, whole_bytes: int | None = None
    ) -> AsyncIterator[operation_pb2.Operation]:
        """The operations of `tenant` among `names`, in that order; unknown and foreign ones are left out.

        Args:
            names: names of operations.
            tenant: whose operations are wanted.
            whole_bytes: a response of more bytes, or one that cannot be read at the moment, is left to `response_part`;
                None to have all of them.
        """
        pipeline = self._connection.commands.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(keyspace.operation(name))
        for name, record in zip(names, await pipeline.execute(), strict=True):
            if record.get(b"tenant") == tenant.encode():
                yield await self._decode(name, record, whole_bytes)

    async def response_part(self, name: str, tenant: str, start: int, length: int) -> bytes:
        """At most `length` bytes of an operation's response, a packed google.protobuf.Any, from `start` on.

        Raises:
            NotFoundError: as `get`.
            FailedPreconditionError: it has no response.
            DataLossError: the response is gone.
        """
        packed, owner = await self._connection.commands.hmget(keyspace.operation(name), "response", "tenant")
        if owner != tenant.encode():
            raise _not_found(name)
        if packed is None:
            message = f"operation {name} has no response: it is not done, or it has failed"
            raise FailedPreconditionError(message, reason="NOT_SUCCEEDED")
        return await self._payloads.unpack_part(packed, start, length)

    async def states(self, names: Sequence[str], tenant: str) -> dict[str, operation_pb2.OperationState.ValueType]:
        """The states of the operations of `tenant` among `names`, without their results."""
        pipeline = self._connection.commands.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(keyspace.operation(name), "tenant", "state")
        records = zip(names, await pipeline.execute(), strict=True)
        return {name: _STATES[state] for name, (owner, state) in records if owner == tenant.encode()}

    async def get(self, name: str, tenant: str, *, whole_bytes: int | None = None) -> operation_pb2.Operation:
        """One operation; arguments as in `read`.

        Raises:
            NotFoundError: there is none of this name, or it is another tenant's.
            UnavailableError: its response cannot be read at the moment.
        """
        record = await self._connection.commands.hgetall(keyspace.operation(name))
        if record.get(b"tenant") != tenant.encode():
            raise _not_found(name)
        return await self._decode(name, record, whole_bytes)

    async def get_with_position(
        self, name: str, tenant: str, *, whole_bytes: int | None = None
    ) -> operation_pb2.Operation:
        """One operation, with its position in the queue while it waits; arguments and errors as in `get`."""
        operation = await self.get(name, tenant, whole_bytes=whole_bytes)
        position = await self._positions.of(operation) if operation.state in WAITING else None
        if position is not None:
            operation.queue_place.CopyFrom(position)
        return operation

    async def cancel(self, name: OperationName, error: CancelledError | None = None, *, reader: str = "") -> bool:
        """Ends an operation with CANCELLED, or with `error`, unless it trains or is done; whether this call did it.

        Of a `reader` of its tokens the call counts only while nobody else has joined the stream after it.
        """
        error = error or CancelledError(f"operation {name} was cancelled")
        keys = [
            keyspace.operation(str(name)),
            keyspace.EVENTS,
            keyspace.run_skipped(name.scope),
            keyspace.CANCELLED,
        ]
        arguments: list[str | bytes | int] = [str(name), name.seq_id, error.to_operation_error().SerializeToString()]
        arguments += [KEEP_FINISHED_MS, "trains" if name.trains else "samples"]
        prefixes = [keyspace.sample_waiting(""), keyspace.sample_jobs("")]
        entry = await self._connection.run("cancel", keys, [*arguments, *prefixes, reader])
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

    async def _decode(self, name: str, record: dict[bytes, bytes], whole_bytes: int | None) -> operation_pb2.Operation:
        operation = accepted_operation(name, record[b"method"].decode(), record[b"state"], int(record[b"time"]))
        if b"error" in record:
            operation.error.ParseFromString(record[b"error"])
        elif b"response" in record:
            await self._add_response(operation, record[b"response"], whole_bytes)
        operation.done = operation.WhichOneof("outcome") is not None
        return operation

    async def _add_response(self, operation: operation_pb2.Operation, packed: bytes, whole_bytes: int | None) -> None:
        size = size_of(packed)
        try:
            if whole_bytes is None or size <= whole_bytes:
                content = await self._payloads.unpack(packed)
                size = len(content)
            if whole_bytes is None or size <= whole_bytes:
                operation.response.ParseFromString(content)
            else:
                operation.stored_response.size_bytes, operation.stored_response.sha256 = size, sha256_of(packed)
        except UnavailableError:
            if whole_bytes is None or not size:
                raise
            operation.stored_response.size_bytes, operation.stored_response.sha256 = size, sha256_of(packed)
        except PlatformError as error:
            operation.error.CopyFrom(error.to_operation_error())


def _packed(response: Message) -> bytes:
    packed = any_pb2.Any()
    packed.Pack(response)
    return packed.SerializeToString()


def _not_found(name: str) -> NotFoundError:
    message = f"there is no operation {name}; results are kept for {KEEP_FINISHED // timedelta(hours=1)} hours"
    return NotFoundError(message, reason="OPERATION_NOT_FOUND")
