"""Programs of the official SDK and their requests: in an outage, killed, and with very many samples in flight."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from testing.platform import API_KEY, BASE_MODEL, Platform
from tests.http.counting_proxy import CountingProxy

STEADY, CROWD = (Path(__file__).with_name(name) for name in ("steady.py", "crowd.py"))
STEPS = 8
MANY = 400
"""As many as the SDK submits at once."""


@asynccontextmanager
async def program(port: int, path: Path = STEADY, size: int = STEPS) -> AsyncIterator[Process]:
    """A program, until it has ended or the test has."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    environment |= {"TINKER_BASE_URL": f"http://127.0.0.1:{port}", "TINKER_API_KEY": API_KEY, "TINKER_TELEMETRY": "0"}
    command = [sys.executable, str(path), BASE_MODEL, str(size)]
    running = await asyncio.create_subprocess_exec(*command, env=environment, stdout=PIPE)
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def next_line(program: Process) -> Any:
    assert program.stdout is not None
    return json.loads(await asyncio.wait_for(program.stdout.readline(), 90))


@pytest.fixture(scope="module")
def calm(sdk_platform: Platform) -> Any:
    """What the program gets when nothing happens, and how many requests it makes."""

    async def run() -> Any:
        async with CountingProxy(sdk_platform.http_port).serve() as proxy, program(proxy.port) as running:
            await next_line(running)
            result = await next_line(running)
            assert proxy.requests <= 15 * STEPS, "a step is three calls, three results and a poll or two"
            return result, proxy.requests

    return asyncio.run(run())


@pytest.mark.parametrize(("victim", "end"), [("gateway", "kill"), ("gateway", "terminate"), ("valkey-server", "kill")])
async def test_an_outage_costs_the_program_nothing_and_nobody_spins(
    sdk_platform: Platform, calm: Any, victim: str, end: str
) -> None:
    undisturbed, requests = calm
    async with CountingProxy(sdk_platform.http_port).serve() as proxy, program(proxy.port) as running:
        assert await next_line(running) == "under way"
        getattr(sdk_platform.child(victim), end)()
        assert await next_line(running) == undisturbed, "the same losses, nothing applied twice, the same samples"
        assert proxy.requests <= requests + 40


async def test_a_killed_program_leaves_the_platform_to_others(sdk_platform: Platform, calm: Any) -> None:
    async with program(sdk_platform.http_port) as doomed:
        assert await next_line(doomed) == "under way"
    async with program(sdk_platform.http_port) as running:
        assert await next_line(running) == "under way"
        assert await next_line(running) == calm[0]


async def test_samples_in_flight_are_all_answered_and_cost_two_requests_each(sdk_platform: Platform) -> None:
    async with (
        CountingProxy(sdk_platform.http_port).serve() as proxy,
        program(proxy.port, CROWD, MANY) as running,
    ):
        assert await next_line(running) == "under way"
        answers = await next_line(running)
        assert [len(answer) for answer in answers] == [2] * MANY
        assert answers == answers[:10] * (MANY // 10), "each has the answer to its own question"
        assert proxy.requests <= 2 * MANY + 60, "a call and a result; one poll waits for all"
