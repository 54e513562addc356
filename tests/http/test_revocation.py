"""A key that is revoked ends the requests that are being answered: held ones and streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from services.gateway.http.revoked import EndWithTheKey
from services.gateway.stores import Stores
from testing.waiting import until
from tests.http.test_futures import create, loss, submit


async def test_an_answer_that_is_held_ends_with_its_key(http: httpx.AsyncClient, stores: Stores) -> None:
    run = await create(http)
    await submit(http, loss(run, 1))
    await stores.api_keys.create("alice")
    waiting = asyncio.create_task(http.post("retrieve_future", json={"request_id": f"{run}:1"}))
    await until(lambda: f"{run}:1" in stores.events.expected)
    first = min(await stores.api_keys.list(), key=lambda key: key.create_time)
    await stores.api_keys.revoke(first.key_id)
    answer = await asyncio.wait_for(waiting, 60)
    assert (answer.status_code, answer.json()["reason"]) == (401, "UNKNOWN_API_KEY")
    assert (await http.post("retrieve_future", json={"request_id": f"{run}:1"})).status_code == 401


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/octet-stream"])
async def test_a_stream_of_events_ends_with_an_event_that_says_why(
    http: httpx.AsyncClient, stores: Stores, media_type: str
) -> None:
    key, made = await stores.api_keys.create("bob")
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        begun.set()
        await asyncio.Event().wait()

    async def answer(request: Request) -> StreamingResponse:
        request.state.call.uses(key)
        return StreamingResponse(endless(), media_type=media_type)

    app = Starlette(routes=[Route("/", answer)], middleware=[Middleware(EndWithTheKey, stores.revocations)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        reading = asyncio.create_task(client.get("/"))
        await begun.wait()
        await stores.api_keys.revoke(made.key_id)
        if media_type == "application/octet-stream":
            with pytest.raises(AssertionError):  # the transport's own: the answer is not complete
                await asyncio.wait_for(reading, 60)
            return
        lines = (await asyncio.wait_for(reading, 60)).text.split("\n\n")
    assert lines[0] == "data: 1"
    assert "revoked" in json.loads(lines[1].removeprefix("data: "))["error"]["message"]
