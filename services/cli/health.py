"""Health of a gRPC server."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.core.errors import UnavailableError
from tinker_proto.channel import open_channel

TIMEOUT_S = 5.0


async def check(address: str, service: str) -> None:
    """Checks that a server, or one service of it, serves.

    Raises:
        UnavailableError: it does not answer, or reports another state.
    """
    try:
        status = await _status(address, service)
    except grpc.aio.AioRpcError as error:
        message = f"{address} does not answer: {error.details()} ({error.code().name})"
        raise UnavailableError(message) from None
    if status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise UnavailableError(f"{address} answers but reports {name}: it is starting or stopping")


async def is_serving(address: str) -> bool:
    """True if a gRPC server answers and serves."""
    try:
        status = await _status(address, "")
    except grpc.aio.AioRpcError:
        return False
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


async def _status(address: str, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        return reply.status
