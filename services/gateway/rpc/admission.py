"""Admission of gRPC calls: the caller is authenticated and memory is reserved before a request is read.

gRPC leaves a request that is not read with its sender. It waits there until its bytes are reserved, and it is refused
unread without a valid key. Calls of one method of a tenant wait for each other only, until the budget is used up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from services.core.catalog.revocations import OpenCall, Revocations
from services.core.config import GatewaySettings
from services.core.errors import DeadlineExceededError, InvalidArgumentError
from services.core.process.server import Context, MethodInterceptor
from services.gateway.request_budget import RequestBudget
from services.gateway.rpc.auth import Authenticator, key_of

_HEALTH = "/grpc.health."
_REFLECTION = "/grpc.reflection."


class AdmissionInterceptor(MethodInterceptor):
    """Reads the requests of all methods itself, each once its bytes are reserved.

    A call holds the reservation of its request until it answers. A stream of requests holds one for the largest request
    until it ends, in a budget of its own: it may take long.
    """

    def __init__(self, auth: Authenticator, revocations: Revocations, settings: GatewaySettings) -> None:
        self._auth = auth
        self._revocations = revocations
        self._requests = RequestBudget.of(settings)
        self._streams = RequestBudget.of(settings)
        self._arrival_s = settings.arrival_seconds
        self._open = (_HEALTH, _REFLECTION) if settings.reflection == "open" else (_HEALTH,)

    def around(self, method: str, handler: Any) -> Any:
        """As in MethodInterceptor."""
        parse, packed = handler.request_deserializer, handler.response_serializer

        def sized(raw: bytes) -> tuple[Any, int]:
            return parse(raw), len(raw)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(method, handler), sized, packed)
        return grpc.stream_unary_rpc_method_handler(self._calling(method, handler), sized, packed)

    def _calling(self, method: str, handler: Any) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(requests: AsyncIterator[tuple[Any, int]], context: Context) -> Any:
            with self._revocations.open_call() as opened:
                return await admitted(requests, context, await self._owner(method, context, opened))

        async def admitted(requests: AsyncIterator[tuple[Any, int]], context: Context, owner: str) -> Any:
            if handler.request_streaming:
                async with self._streams.reserve(owner, self._streams.most_bytes):
                    return await handler.stream_unary(self._each(requests), context)
            async with self._requests.reserve(owner, self._requests.most_bytes) as reservation:
                request, size_bytes = await self._first(requests)
                reservation.shrink(size_bytes)
                return await handler.unary_unary(request, context)

        return call

    def _streaming(self, method: str, handler: Any) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def stream(requests: AsyncIterator[tuple[Any, int]], context: Context) -> AsyncIterator[Any]:
            with self._revocations.open_call() as opened:
                owner = await self._owner(method, context, opened)
                async for response in admitted(requests, context, owner):
                    yield response

        async def admitted(
            requests: AsyncIterator[tuple[Any, int]], context: Context, owner: str
        ) -> AsyncIterator[Any]:
            if handler.request_streaming:
                async with self._streams.reserve(owner, self._streams.most_bytes):
                    async for response in handler.stream_stream(self._each(requests), context):
                        yield response
                return
            async with self._requests.reserve(owner, self._requests.most_bytes) as reservation:
                request, size_bytes = await self._first(requests)
                reservation.shrink(size_bytes)
                async for response in handler.unary_stream(request, context):
                    reservation.shrink(0)
                    yield response

        return stream

    async def _owner(self, method: str, context: Context, opened: OpenCall) -> str:
        """The owner of a call's reservation; the call ends with its key."""
        if method.startswith(self._open):
            return method
        opened.uses(key_of(context))
        return f"{await self._auth.tenant(context)} {method}"

    async def _first(self, requests: AsyncIterator[tuple[Any, int]]) -> tuple[Any, int]:
        arrived = await self._next(requests)
        if arrived is None:
            raise InvalidArgumentError(
                "malformed protobuf request: the call ended without a message", reason="BAD_PROTOBUF"
            )
        return arrived

    async def _each(self, requests: AsyncIterator[tuple[Any, int]]) -> AsyncIterator[Any]:
        while (arrived := await self._next(requests)) is not None:
            yield arrived[0]

    async def _next(self, requests: AsyncIterator[tuple[Any, int]]) -> tuple[Any, int] | None:
        try:
            async with asyncio.timeout(self._arrival_s):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineExceededError.of_arrival(self._arrival_s) from None
