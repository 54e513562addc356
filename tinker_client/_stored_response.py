"""Responses that are too large for a message: read in parts, on a call of their own, and verified.

A part that was received is not asked for again when the connection breaks. Whatever goes wrong is the error of this
one operation. Lives on the background loop.
"""

from __future__ import annotations

import asyncio
import hashlib

import grpc
from google.protobuf.message import DecodeError

from tinker_client._transport import Transport
from tinker_client.errors import RequestFailedError
from tinker_proto.v1 import operation_pb2

MAX_RESPONSE_BYTES = 2 << 20
"""A larger response does not come with the others, so that these need not wait for it."""


async def with_response(transport: Transport, operation: operation_pb2.Operation) -> operation_pb2.Operation:
    """A finished operation with its response in it.

    Raises:
        APIStatusError, APIConnectionError: the response cannot be read.
        RequestFailedError: it is not what was stored.
    """
    if not operation.HasField("stored_response"):
        return operation
    stored = operation.stored_response
    content = await _read(transport, operation.name, stored.size_bytes)
    whole = operation_pb2.Operation()
    whole.CopyFrom(operation)
    try:
        damaged = stored.sha256 and hashlib.sha256(content).hexdigest() != stored.sha256
        if len(content) != stored.size_bytes or damaged:
            raise DecodeError(f"{len(content)} of {stored.size_bytes} bytes, or another SHA-256")
        whole.response.ParseFromString(bytes(content))
    except DecodeError as error:
        message = f"the response of operation {operation.name} was damaged on its way or where it was stored ({error})"
        raise RequestFailedError(message, request_id=operation.name, category="server", code="DATA_LOSS") from None
    return whole


async def _read(transport: Transport, name: str, size_bytes: int) -> bytearray:
    content, outage = bytearray(), transport.outage()
    while (received := len(content)) < size_bytes:
        request = operation_pb2.ReadResponseRequest(name=name, offset=received)
        try:
            async for part in transport.stream(transport.operations.ReadResponse, request):
                content += part.content
                outage.end()
        except grpc.aio.AioRpcError as error:
            await asyncio.sleep(outage.pause_after(error))
        else:
            if len(content) == received:  # ended in good order, and had nothing: the rest is gone
                break
    return content
