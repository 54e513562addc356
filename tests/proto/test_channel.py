"""A server on this machine is reached whatever proxies the environment names."""

from __future__ import annotations

import os
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from services.cli.health import is_serving
from tinker_proto.channel import is_local

DEAD_PROXY = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), DEAD_PROXY)


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1",
        "LOCALHOST:1",
        "app.localhost:1",
        "127.0.0.1:1",
        "127.8.9.10:1",
        "0.0.0.0:1",
        "[::1]:1",
        "[::]:1",
        "[::ffff:127.0.0.1]:1",
        "unix:/run/socket",
    ],
)
def test_targets_on_this_machine_are_local(target: str) -> None:
    assert is_local(target)


@pytest.mark.parametrize(
    "target", ["example.org:443", "10.0.0.1:1", "[2001:db8::1]:1", "localhost.example.org:1", "128.0.0.1:1"]
)
def test_other_targets_are_not(target: str) -> None:
    assert not is_local(target)


async def test_a_health_check_on_this_machine_passes_by_a_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert await is_serving(f"127.0.0.1:{port}")
    await server.stop(None)


def test_another_machine_is_reached_through_the_proxy() -> None:
    """What the platform does not decide: gRPC asks the proxy, which is not there."""
    program = """
import asyncio
from tinker_proto.channel import open_channel
async def main():
    async with open_channel("192.0.2.1:1") as channel:
        try:
            await channel.unary_unary("/x/y")(b"", timeout=20)
        except Exception as error:
            print(error.details())
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **PROXIES}, capture_output=True, text=True, check=True
    )
    assert "127.0.0.1:9" in done.stdout
