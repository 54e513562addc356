"""Streams: what a consumer that is gone had taken."""

from __future__ import annotations

from services.core.queue import streams
from services.core.queue.connection import RedisConnection

GROUP = "workers"
HOUR_MS = 3_600_000


async def test_what_a_dead_consumer_had_is_found_behind_whatever_the_living_have(connection: RedisConnection) -> None:
    commands, stream = connection.commands, "places"
    await streams.make_group(commands, GROUP, stream)
    for i in range(60):
        await commands.xadd(stream, {"run": i})
    living = await streams.read_group(commands, GROUP, "living", stream, count=50)
    dead = await streams.read_group(commands, GROUP, "dead", stream, count=50)
    assert len(dead) == 10

    await commands.xclaim(stream, GROUP, "living", 0, [entry.entry_id for entry in living], idle=HOUR_MS)
    await commands.xclaim(stream, GROUP, "dead", 0, [entry.entry_id for entry in dead], idle=HOUR_MS)
    await streams.keep(commands, GROUP, "living", stream, [entry.entry_id for entry in living])
    first = await streams.take_over(commands, GROUP, "other", stream, idle_ms=HOUR_MS, count=1)
    assert first == dead[:1]
    rest = await streams.take_over(commands, GROUP, "other", stream, idle_ms=HOUR_MS, count=20)
    assert rest == dead[1:]
