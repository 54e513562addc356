"""A real Valkey with an append-only file, as in production."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.cli.embedded_redis import EmbeddedRedis


@asynccontextmanager
async def valkey(directory: Path) -> AsyncIterator[str]:
    """Serves from `directory` until the block ends; yields the URL."""
    server = EmbeddedRedis(directory, directory / "log")
    await server.start()
    try:
        yield server.url
    finally:
        await server.stop()
