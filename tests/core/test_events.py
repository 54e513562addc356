"""One reader hands every finished operation to its session's watchers, and admits it when it may have missed one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.cli.embedded_redis import EmbeddedRedis
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.queue.events import EventHub


async def announce(connection: RedisConnection, name: str) -> None:
    await connection.commands.xadd(keyspace.EVENTS, {"operation": name})


async def test_names_reach_the_watchers_of_their_session_only(connection: RedisConnection) -> None:
    hub = EventHub(connection)
    reader = asyncio.create_task(hub.run(await hub.start()))
    with hub.watch("a") as first, hub.watch("a") as second, hub.watch("b") as other:
        for name in ("a:train:0:1", "b:sample:0:2", "a:sample:1:0"):
            await announce(connection, name)
        for watcher in (first, second):
            seen: set[str] = set()
            while len(seen) < 2:
                seen |= set(await asyncio.wait_for(watcher.next_names(), 60) or ())
            assert seen == {"a:train:0:1", "a:sample:1:0"}
        assert await asyncio.wait_for(other.next_names(), 60) == ["b:sample:0:2"]
    reader.cancel()


async def test_a_hub_that_starts_late_sees_only_what_comes_then(connection: RedisConnection) -> None:
    await announce(connection, "a:train:0:1")
    hub = EventHub(connection)
    reader = asyncio.create_task(hub.run(await hub.start()))
    with hub.watch("a") as watcher:
        await announce(connection, "a:train:0:2")
        assert await asyncio.wait_for(watcher.next_names(), 60) == ["a:train:0:2"]
    reader.cancel()


async def test_watches_end_when_redis_was_away_and_the_reader_goes_on(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", tmp_path / "log")
    process = await server.start()
    connection = RedisConnection.open(server.url)
    hub = EventHub(connection)
    reader = asyncio.create_task(hub.run(await hub.start()))
    with hub.watch("a") as watcher:
        process.kill()
        await process.wait()
        await server.start()
        assert await asyncio.wait_for(watcher.next_names(), 60) is None
    with hub.watch("a") as watcher:
        await announce(connection, "a:train:0:1")
        assert await asyncio.wait_for(watcher.next_names(), 60) == ["a:train:0:1"]
    reader.cancel()
    await connection.close()
    await server.stop()


async def test_a_hub_that_is_shut_ends_old_and_new_watches(connection: RedisConnection) -> None:
    hub = EventHub(connection)
    with hub.watch("a") as old:
        hub.shut()
        assert await asyncio.wait_for(old.next_names(), 60) is None
    with hub.watch("a") as new:
        assert await asyncio.wait_for(new.next_names(), 60) is None
