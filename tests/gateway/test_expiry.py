"""Expired checkpoints vanish by themselves: nobody has to call anything, and a Redis that was away is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest
from redis.exceptions import ConnectionError

from services.core.catalog.checkpoints import CheckpointCatalog
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.gateway import main
from services.gateway.stores import Stores
from tests.gateway.caller import Caller
from tests.gateway.saved import save
from tests.gateway.test_checkpoints import expire
from tinker_proto.path import TinkerPath


@pytest.fixture
async def faults(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Exception]]:
    """A gateway's loop that removes what has expired; what is put into the list happens to it."""
    waiting: list[Exception] = []
    remove = CheckpointCatalog.remove_expired

    async def remove_unless(catalog: CheckpointCatalog) -> None:
        if waiting:
            raise waiting.pop()
        await remove(catalog)

    monkeypatch.setattr(CheckpointCatalog, "remove_expired", remove_unless)
    monkeypatch.setattr(main, "EXPIRE_EVERY", timedelta(milliseconds=10))
    loop = asyncio.create_task(main.remove_expired(stores))
    yield waiting
    assert not loop.done(), "it goes on as long as the gateway"
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop


async def test_an_expired_checkpoint_and_its_files_go_by_themselves(
    alice: Caller, stores: Stores, connection: RedisConnection, faults: list[Exception]
) -> None:
    run = await alice.run()
    saved = [await save(alice, stores, run, name, ttl_seconds=3600) for name in ("due", "later")]
    due, later = [await stores.catalog.checkpoints.location_of(TinkerPath.parse(path)) for path in saved]
    faults.append(ConnectionError("Redis is away"))
    async with asyncio.timeout(60):
        while faults:
            await asyncio.sleep(0.01)
        await expire(connection, saved[0])
        while stores.checkpoints.exists(due):
            await asyncio.sleep(0.01)
    assert stores.checkpoints.exists(later)
    listed = await connection.commands.zrange(keyspace.run_checkpoints(run), 0, -1)
    assert listed == [saved[1].encode()], "no call has looked at it meanwhile"
