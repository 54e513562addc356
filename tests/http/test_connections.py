"""Connections whose request does not arrive are closed; those that are answered or idle stay open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.http.connections import closing_after
from testing.waiting import until

WHOLE = b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"
UNREAD = b"POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
ANSWERED = b"HTTP/1.1 200 OK"


class Later:
    """A server with a route that answers at once and one that answers when it is told to."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.asked = asyncio.Event()
        routes = [Route("/now", self.now, methods=["GET", "POST"]), Route("/later", self.later)]
        config = uvicorn.Config(
            Starlette(routes=routes),
            port=0,
            http=closing_after(0.2),
            lifespan="off",
            log_level="error",
            timeout_keep_alive=75,
        )
        self.server = uvicorn.Server(config)

    async def now(self, request: Request) -> Response:
        return Response("now")

    async def later(self, request: Request) -> Response:
        self.asked.set()
        await self.told.wait()
        return Response("later")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return await asyncio.open_connection("127.0.0.1", port)


@pytest.fixture
async def later() -> AsyncIterator[Later]:
    opened = Later()
    serving = asyncio.create_task(opened.server.serve())
    await until(lambda: opened.server.started)
    yield opened
    opened.told.set()
    opened.server.should_exit = True
    await serving


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: ", WHOLE + WHOLE[:20], UNREAD],
    ids=["nothing", "half a head", "half a second head", "a body that is not read"],
)
async def test_a_request_that_does_not_arrive_is_closed_and_others_are_not(later: Later, sent: bytes) -> None:
    reader, writer = await later.open()
    writer.write(SLOW)
    await later.asked.wait()
    half_reader, half_writer = await later.open()
    half_writer.write(sent)
    if sent == UNREAD:
        assert (await half_reader.readuntil(b"now")).startswith(ANSWERED)
        half_writer.write(b"d")
    rest = await asyncio.wait_for(half_reader.read(), 30)
    assert rest == b"" or rest.startswith(ANSWERED)
    later.told.set()
    assert (await reader.readuntil(b"later")).startswith(ANSWERED)
    writer.write(WHOLE)
    assert (await reader.readuntil(b"now")).startswith(ANSWERED)
    for opened in (writer, half_writer):
        opened.close()


async def test_a_connection_that_is_idle_after_an_answer_stays_open(later: Later) -> None:
    reader, writer = await later.open()
    writer.write(WHOLE)
    await reader.readuntil(b"now")
    half_reader, half_writer = await later.open()
    assert await asyncio.wait_for(half_reader.read(), 30) == b"", "as long as a head may take"
    writer.write(WHOLE)
    assert (await reader.readuntil(b"now")).startswith(ANSWERED)
    for opened in (writer, half_writer):
        opened.close()
