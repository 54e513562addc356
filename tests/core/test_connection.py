"""The Redis clients: as many callers as there are, each of which may be cancelled at any moment."""

from __future__ import annotations

import asyncio
import random

from services.core.queue.connection import RedisConnection


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
        done, _ = await asyncio.wait({loop}, timeout=60)
        assert done, "its cancellation was lost"


async def test_more_callers_than_connections_wait_for_their_turn(connection: RedisConnection) -> None:
    counted = await asyncio.gather(*(connection.commands.incr("calls") for _ in range(2000)))
    assert sorted(counted) == list(range(1, 2001))
    clients = await connection.commands.info("clients")
    assert clients["connected_clients"] < 500


async def test_a_script_runs_also_on_a_server_that_keeps_losing_it(connection: RedisConnection) -> None:
    async def lose_scripts() -> None:
        while True:
            await connection.commands.script_flush()

    losing = asyncio.create_task(lose_scripts())
    for epoch in range(1, 501):
        assert await connection.run("claim_run", ["own"], ["worker", 60_000]) == epoch
    losing.cancel()
    await asyncio.gather(losing, return_exceptions=True)
