"""Fixtures that every part's tests share: one real Valkey for the whole run, a fresh database for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from services.cli.embedded_redis import EmbeddedRedis
from services.core.queue.connection import RedisConnection


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with an append-only file, as in production."""
    directory = tmp_path_factory.mktemp("redis")
    server = EmbeddedRedis(directory, directory / "log")
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server.url
        runner.run(server.stop())


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
