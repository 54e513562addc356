"""The health service answers as its contract says, to everybody, and says in time that the gateway is about to stop."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.core.config import Settings
from services.gateway.main import SERVICES, grpc_server
from services.gateway.stores import Stores

Status = health_pb2.HealthCheckResponse
SERVICE = "tinker.v1.TrainingService"


async def test_every_service_is_serving_and_others_are_unknown(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == Status.SERVING
        listed = (await health.List(health_pb2.HealthListRequest())).statuses
        assert {name: reply.status for name, reply in listed.items()} == dict.fromkeys(("", *SERVICES), Status.SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="x"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("service", "seen"), [(SERVICE, [Status.SERVING, Status.NOT_SERVING]), ("x", [Status.SERVICE_UNKNOWN])]
)
async def test_a_watch_says_when_the_server_stops_and_does_not_hold_it_up(
    stores: Stores, service: str, seen: list[int]
) -> None:
    server = grpc_server(Settings(drain_seconds=60), stores)
    port = await server.start(0, SERVICES)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        statuses = [(await anext(aiter(watch))).status]
        await server.drain()
        statuses += [reply.status async for reply in watch]
    assert statuses == seen
