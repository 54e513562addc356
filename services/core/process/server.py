"""gRPC servers of the platform: options, errors, health, reflection, and graceful stop.

One interceptor turns exceptions into statuses, so that servicers just raise. SIGTERM and SIGINT drain: health turns to
NOT_SERVING, new calls are refused, calls under way get `drain_seconds` to finish.
"""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.core.config import CommonSettings
from services.core.errors import InternalError, InvalidArgumentError, PlatformError, UnavailableError
from services.core.process.health import HealthServicer
from services.core.process.metrics import CALLS
from services.core.queue.connection import TRANSIENT_ERRORS

_log = structlog.get_logger(__name__)

UNREAD_BYTES = 256 << 10
"""HTTP/2 window: bytes of a request that gRPC buffers before the handler reads it; by default the window grows."""

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class MethodInterceptor(grpc.aio.ServerInterceptor, ABC):
    """An interceptor that puts a handler of its own around that of every method; an unknown method has none."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of the method that is about to be called; see grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self.around(handler_call_details.method, handler)

    @abstractmethod
    def around(self, method: str, handler: Any) -> Any:
        """The handler that is called in place of `handler`."""


class ErrorInterceptor(MethodInterceptor):
    """Turns exceptions of servicers into statuses: a PlatformError as it is, others into INTERNAL with a log entry.

    A request that is no message of the method's type is INVALID_ARGUMENT.
    """

    def around(self, method: str, handler: Any) -> Any:
        """As in MethodInterceptor."""
        parse, packed = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            call = _guarded_call(method, _parsing(parse, handler.unary_unary))
            return grpc.unary_unary_rpc_method_handler(call, None, packed)
        if handler.unary_stream:
            stream = _guarded_stream(method, _parsing(parse, handler.unary_stream))
            return grpc.unary_stream_rpc_method_handler(stream, None, packed)
        if handler.stream_unary:
            call = _guarded_call(method, _parsing_each(parse, handler.stream_unary))
            return grpc.stream_unary_rpc_method_handler(call, None, packed)
        stream = _guarded_stream(method, _parsing_each(parse, handler.stream_stream))
        return grpc.stream_stream_rpc_method_handler(stream, None, packed)


def _parsing(parse: Callable[[bytes], Any], call: Callable[[Any, Context], T]) -> Callable[[bytes, Context], T]:
    """Parses a request where errors become statuses: gRPC itself answers UNKNOWN to a malformed one."""
    return lambda raw, context: call(_parsed(parse, raw), context)


def _parsing_each(
    parse: Callable[[bytes], Any], call: Callable[[Any, Context], T]
) -> Callable[[AsyncIterator[bytes], Context], T]:
    """As `_parsing`, for a stream of requests; gRPC's own iterator would keep the last one until garbage collection."""

    async def parsed(context: Context) -> AsyncIterator[Any]:
        while (raw := await context.read()) is not grpc.aio.EOF:
            message = _parsed(parse, raw)
            del raw
            yield message

    return lambda _, context: call(parsed(context), context)


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidArgumentError(f"malformed protobuf request: {error}", reason="BAD_PROTOBUF") from None


def _guarded_call(method: str, call: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Any]:
    async def guarded(request: Any, context: Context) -> Any:
        try:
            response = await call(request, context)
            CALLS.labels(method, "").inc()
            return response
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            status = _refusal(method, error)
        await _abort(context, status)

    return guarded


def _guarded_stream(
    method: str, call: Callable[[Any, Context], AsyncIterator[Any]]
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in call(request, context):
                yield response
            CALLS.labels(method, "").inc()
            return
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            status = _refusal(method, error)
        await _abort(context, status)

    return guarded


def _refusal(method: str, error: Exception) -> grpc.Status:
    if isinstance(error, PlatformError):
        known = error
    elif isinstance(error, TRANSIENT_ERRORS):
        known = UnavailableError.of_queue()
    else:
        known = InternalError.of_request()
        _log.error("call failed", incident=known.incident, method=method, exc_info=error)
    CALLS.labels(method, known.reason).inc()
    status: grpc.Status = rpc_status.to_status(known.to_status())
    return status


async def _abort(context: Context, status: grpc.Status) -> NoReturn:
    """Ends a call; outside of `except`, or gRPC's exception would keep the error and the request in memory."""
    await context.abort(status.code, status.details, status.trailing_metadata)


class GrpcServer:
    """One grpc.aio server with health and, if wanted, reflection."""

    def __init__(self, settings: CommonSettings, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        self._settings = settings
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor(), *interceptors], options=_options(settings))
        self.health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)

    async def start(self, port: int, service_names: Sequence[str]) -> int:
        """Listens and sets every service to SERVING; returns the port.

        Raises:
            UnavailableError: the port is taken.
        """
        names = (*service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        if self._settings.reflection != "off":
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self.server)
        address = f"{self._settings.host}:{port}"
        try:
            bound = self.server.add_insecure_port(address)
        except RuntimeError:
            message = f"cannot listen on {address}: is another server running there? Choose another port"
            raise UnavailableError(message, reason="PORT_TAKEN") from None
        self.health.serve(*service_names)
        await self.server.start()
        return bound

    async def drain(self) -> None:
        """Refuses new calls and waits for those under way, at most `drain_seconds`."""
        self.health.leave()
        await self.server.stop(self._settings.drain_seconds)


async def until_stopped() -> None:
    """Waits for SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def _options(settings: CommonSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
