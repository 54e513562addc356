"""One platform for all programs of the official SDK; an application in this process for what is said on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from services.core.config import Settings
from services.core.queue.connection import RedisConnection
from services.gateway.http.app import http_app
from services.gateway.http.backend import Backend
from services.gateway.stores import Stores
from testing.platform import Platform, free_port
from testing.tiny_models import save_tiny_model
from tests.gateway import conftest as gateway

stores, workers = gateway.stores, gateway.workers
"""Its workers are announced and take no work."""


@pytest.fixture(scope="session")
def sdk_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    model_dir = save_tiny_model(tmp_path_factory.mktemp("sdk-model"), "qwen3")
    variables = {"TINKER_METRICS_PORT": str(free_port())}
    running = Platform(model_dir, tmp_path_factory.mktemp("sdk-platform") / "data", variables)
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir, max_waiting_per_run=3, max_message_bytes=1 << 20)


@pytest.fixture
async def http(stores: Stores, connection: RedisConnection, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of the tenant alice."""
    position = await stores.events.start()
    reader = asyncio.create_task(stores.events.run(position))
    revoked = asyncio.create_task(stores.revocations.run(await stores.revocations.start()))
    key, _ = await stores.api_keys.create("alice")
    app = http_app(Backend.open(settings, stores), connection)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://gateway/api/v1", headers={"x-api-key": key}
    ) as client:
        yield client
    reader.cancel()
    revoked.cancel()
    await asyncio.gather(reader, revoked, return_exceptions=True)
