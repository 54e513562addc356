"""Streams: what a consumer that is gone had taken."""

from __future__ import annotations

import asyncio

from services.core.queue import streams
from services.core.queue.connection import RedisConnection

GROUP = "workers"


async def test_what_a_dead_consumer_had_is_found_behind_whatever_the_living_have(connection: RedisConnection) -> None:
    commands, stream = connection.commands, "places"
    await streams.make_group(commands, GROUP, stream)
    for i in range(60):
        await commands.xadd(stream, {"run": i})
    living = await streams.read_group(commands, GROUP, "living", stream, count=50)
    dead = await streams.read_group(commands, GROUP, "dead", stream, count=50)
    assert len(dead) == 10

    async def taken_over() -> list[streams.StreamEntry]:
        while True:
            await streams.keep(commands, GROUP, "living", stream, [entry.entry_id for entry in living])
            if found := await streams.take_over(commands, GROUP, "other", stream, idle_ms=200, count=1):
                return found
            await asyncio.sleep(0.01)

    assert await asyncio.wait_for(taken_over(), 10) == dead[:1]
    rest = await streams.take_over(commands, GROUP, "other", stream, idle_ms=200, count=20)
    assert rest == dead[1:]
