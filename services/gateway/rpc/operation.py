"""tinker.v1.OperationService: results, one stream per client, and cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from services.core.config import GatewaySettings
from services.core.errors import InvalidArgumentError, UnavailableError, quoted
from services.core.names import OperationName
from services.core.process.server import Context
from services.core.queue.events import Watcher
from services.gateway.responses import parts, whole_bytes
from services.gateway.rpc.auth import Authenticator
from services.gateway.stores import Stores
from tinker_proto.v1 import operation_pb2, operation_pb2_grpc

TOUCH_EVERY_S = 20.0
"""A watch says something at least this often: proxies close connections that are silent for a minute."""

READ_AT_ONCE = 100
MESSAGE_BYTES = 2 << 20
MAX_PENDING = 100_000


class OperationServicer(operation_pb2_grpc.OperationServiceServicer):
    """Reads, watches and cancels operations of the caller's tenant."""

    def __init__(self, stores: Stores, auth: Authenticator, settings: GatewaySettings) -> None:
        self._stores = stores
        self._auth = auth
        self._settings = settings

    async def GetOperation(
        self, request: operation_pb2.GetOperationRequest, context: Context
    ) -> operation_pb2.Operation:
        """An operation as it is now."""
        tenant = await self._auth.tenant(context)
        whole = whole_bytes(self._settings, request.max_response_bytes)
        name = str(OperationName.parse(request.name))
        return await self._stores.operations.get_with_position(name, tenant, whole_bytes=whole)

    async def ReadResponse(
        self, request: operation_pb2.ReadResponseRequest, context: Context
    ) -> AsyncIterator[operation_pb2.ReadResponseResponse]:
        """A stored response, part by part."""
        tenant = await self._auth.tenant(context)
        async for part in parts(self._stores.operations, request, str(OperationName.parse(request.name)), tenant):
            yield part

    async def CancelOperation(
        self, request: operation_pb2.CancelOperationRequest, context: Context
    ) -> operation_pb2.Operation:
        """Cancels an operation unless it has begun; returns it as it is now."""
        tenant = await self._auth.tenant(context)
        name, whole = OperationName.parse(request.name), whole_bytes(self._settings)
        await self._stores.operations.get(str(name), tenant, whole_bytes=0)
        await self._stores.operations.cancel(name)
        return await self._stores.operations.get(str(name), tenant, whole_bytes=whole)

    async def WatchOperations(
        self, request: operation_pb2.WatchOperationsRequest, context: Context
    ) -> AsyncIterator[operation_pb2.WatchOperationsResponse]:
        """Operations of a session as they finish; those finished already among the pending ones first."""
        tenant = await self._auth.tenant(context)
        await self._stores.sessions.get(request.session_id, tenant)
        pending, whole = _checked(request), whole_bytes(self._settings, request.max_response_bytes)
        with self._stores.events.watch(request.session_id) as watcher:
            yield operation_pb2.WatchOperationsResponse()
            names: Sequence[str] | None = pending
            while names is not None:
                async for batch in _batches(self._finished(names, tenant, whole)):
                    yield operation_pb2.WatchOperationsResponse(operations=batch)
                names = await self._next_names(watcher, request.session_id)
                if not names and names is not None:
                    yield operation_pb2.WatchOperationsResponse()
        raise UnavailableError("the watch has ended; open it again and name what is pending", reason="WATCH_ENDED")

    async def _finished(self, names: Sequence[str], tenant: str, whole: int) -> AsyncIterator[operation_pb2.Operation]:
        for start in range(0, len(names), READ_AT_ONCE):
            read = names[start : start + READ_AT_ONCE]
            async for operation in self._stores.operations.read(read, tenant, whole_bytes=whole):
                if operation.done:
                    yield operation

    async def _next_names(self, watcher: Watcher, session_id: str) -> Sequence[str] | None:
        """Operations that have finished; none after a silence, None once the watch has to end."""
        await self._stores.sessions.touch(session_id)
        try:
            async with asyncio.timeout(TOUCH_EVERY_S):
                return await watcher.next_names()
        except TimeoutError:
            return ()


def _checked(request: operation_pb2.WatchOperationsRequest) -> list[str]:
    if len(request.pending) > MAX_PENDING:
        raise InvalidArgumentError.must_be("pending", f"at most {MAX_PENDING} names", len(request.pending))
    for i, name in enumerate(request.pending):
        if OperationName.parse(name).session_id != request.session_id:
            rule = f"an operation of session {request.session_id}"
            raise InvalidArgumentError.must_be(f"pending[{i}]", rule, quoted(name))
    return list(request.pending)


async def _batches(
    operations: AsyncIterator[operation_pb2.Operation],
) -> AsyncIterator[list[operation_pb2.Operation]]:
    """Joins operations so that a message stays small; one large result goes alone."""
    batch: list[operation_pb2.Operation] = []
    size = 0
    async for operation in operations:
        if batch and size + operation.ByteSize() > MESSAGE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(operation)
        size += operation.ByteSize()
    if batch:
        yield batch
