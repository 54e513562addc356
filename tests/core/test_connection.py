"""The Redis clients, as loops use them."""

from __future__ import annotations

import asyncio
import random

from services.core.connection import RedisConnection


async def test_a_loop_that_is_cancelled_ends_wherever_it_is(connection: RedisConnection) -> None:
    async def call_for_ever() -> None:
        while True:
            await connection.commands.ping()

    drawn = random.Random(0)
    for _ in range(300):
        loop = asyncio.create_task(call_for_ever())
        for _ in range(drawn.randrange(1, 40)):
            await asyncio.sleep(0)
        loop.cancel()
        done, _ = await asyncio.wait({loop}, timeout=5)
        assert done, "its cancellation was lost"
