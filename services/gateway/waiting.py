"""Waiting until an operation has ended."""

from __future__ import annotations

import asyncio

from services.core.names import OperationName
from services.gateway.stores import Stores
from tinker_proto.v1 import operation_pb2


async def until_done(
    stores: Stores,
    name: OperationName,
    tenant: str,
    deadline: float | None = None,
    *,
    whole_bytes: int | None = None,
) -> operation_pb2.Operation:
    """The operation once it is done; as it is at the deadline, or when this gateway begins to stop.

    Args:
        stores: the gateway's stores.
        name: the operation's name.
        tenant: whose operation it is.
        deadline: by the event loop's clock, in seconds; None to wait for as long as it takes.
        whole_bytes: as in OperationStore.read.

    Raises:
        NotFoundError: the tenant has no such operation.
    """
    with stores.events.expect(str(name)) as news:
        while True:
            news.clear()
            operation = await stores.operations.get(str(name), tenant, whole_bytes=whole_bytes)
            if operation.done or stores.events.is_shut:
                return operation
            try:
                async with asyncio.timeout_at(deadline):
                    await news.wait()
            except TimeoutError:
                return operation
