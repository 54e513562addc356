"""Asks for an API key before gRPC reflection tells what is served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from services.core.api_keys import ApiKeys
from services.core.errors import UnauthenticatedError
from services.core.server import Context
from services.gateway.auth import Authenticator

_REFLECTION_PREFIX = "/grpc.reflection."


class ReflectionKeyInterceptor(grpc.aio.ServerInterceptor):
    """Lets reflection through only with a valid key."""

    def __init__(self, api_keys: ApiKeys) -> None:
        self._auth = Authenticator(api_keys)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Guards the reflection service; see grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_REFLECTION_PREFIX):
            return handler

        async def guarded(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            try:
                await self._auth.tenant(context)
            except UnauthenticatedError as error:
                status: Any = rpc_status.to_status(error.to_status())
                await context.abort(status.code, status.details, status.trailing_metadata)
            async for response in handler.stream_stream(requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(guarded, handler.request_deserializer, handler.response_serializer)
