"""Fixtures that every part's tests share: one real Valkey for the whole run, a fresh database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis

from services.core.queue.connection import RedisConnection
from testing.valkey import valkey
from tests.processes import needs_process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that start processes."""
    for item in items:
        if isinstance(item, pytest.Function) and needs_process(item):
            item.add_marker("process")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A real server with an append-only file, as in production."""
    async with valkey(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def connection(redis_url: str) -> AsyncIterator[RedisConnection]:
    """Clients of an empty database."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    opened = RedisConnection.open(redis_url)
    yield opened
    await opened.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
