"""A gateway over real Valkey and real gRPC on loopback; its workers are announced but take no work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from services.core.config import Settings
from services.core.losses import LOSSES
from services.core.process.workers import HEARTBEAT_S
from services.core.queue.connection import RedisConnection
from services.gateway.main import SERVICES, grpc_server
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, open_caller
from tinker_proto.internal.v1 import job_pb2


@pytest.fixture
def workers() -> list[job_pb2.WorkerStatus]:
    """A trainer and a sampler of one base model; a test may change what they announce."""
    limits = {"base_model": BASE, "max_context_length": 32, "vocab_size": 100}
    return [
        job_pb2.WorkerStatus(
            worker="w1", kind=job_pb2.WORKER_KIND_TRAINER, max_lora_rank=16, loss_fns=sorted(LOSSES), **limits
        ),
        job_pb2.WorkerStatus(worker="w2", kind=job_pb2.WORKER_KIND_SAMPLER, **limits),
    ]


@pytest.fixture
async def stores(
    connection: RedisConnection, data_dir: Path, workers: list[job_pb2.WorkerStatus]
) -> AsyncIterator[Stores]:
    opened = Stores.open(Settings(data_dir=data_dir), connection)
    tokenizer = job_pb2.TokenizerFiles(files={"tokenizer.json": b"{}", "tokenizer_config.json": b"[]"})
    blob = await opened.blobs.put_once("tokenizers", tokenizer.SerializeToString())
    for status in workers:
        status.tokenizer_blob = blob
        await opened.workers.announce(status)
    announcing = asyncio.create_task(_announce(opened, workers))
    yield opened
    announcing.cancel()
    await asyncio.gather(announcing, return_exceptions=True)


async def _announce(stores: Stores, workers: Sequence[job_pb2.WorkerStatus]) -> None:
    """Keeps workers alive, as their heartbeats would."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        for status in workers:
            await stores.workers.announce(status)


@pytest.fixture
async def address(stores: Stores, data_dir: Path) -> AsyncIterator[str]:
    position = await stores.events.start()
    reader = asyncio.create_task(stores.events.run(position))
    revoked = asyncio.create_task(stores.revocations.run(await stores.revocations.start()))
    server = grpc_server(Settings(data_dir=data_dir, drain_seconds=0), stores)
    port = await server.start(0, SERVICES)
    yield f"127.0.0.1:{port}"
    stores.events.shut()
    await server.drain()
    reader.cancel()
    revoked.cancel()
    await asyncio.gather(reader, revoked, return_exceptions=True)


@pytest.fixture
async def alice(stores: Stores, address: str) -> AsyncIterator[Caller]:
    key, _ = await stores.api_keys.create("alice")
    async with open_caller(address, key) as caller:
        yield caller


@pytest.fixture
async def mallory(stores: Stores, address: str) -> AsyncIterator[Caller]:
    key, _ = await stores.api_keys.create("mallory")
    async with open_caller(address, key) as caller:
        yield caller
