"""A gateway over real Valkey and real gRPC on loopback; its workers are announced but take no work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.config import Settings
from services.core.connection import RedisConnection
from services.gateway.main import SERVICES, grpc_server
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, open_caller
from tinker_proto.internal.v1 import job_pb2


@pytest.fixture
async def stores(connection: RedisConnection, data_dir: Path) -> Stores:
    opened = Stores.open(Settings(data_dir=data_dir), connection)
    tokenizer = job_pb2.TokenizerFiles(files={"tokenizer.json": b"{}", "tokenizer_config.json": b"[]"})
    blob = await opened.blobs.put_once("tokenizers", tokenizer.SerializeToString())
    for kind in (job_pb2.WORKER_KIND_TRAINER, job_pb2.WORKER_KIND_SAMPLER):
        status = job_pb2.WorkerStatus(
            worker=f"w{kind}",
            kind=kind,
            base_model=BASE,
            max_context_length=32,
            vocab_size=100,
            max_lora_rank=16 if kind == job_pb2.WORKER_KIND_TRAINER else 0,
            loss_fns=["cross_entropy"] if kind == job_pb2.WORKER_KIND_TRAINER else [],
            tokenizer_blob=blob,
        )
        await opened.workers.announce(status)
    return opened


@pytest.fixture
async def address(stores: Stores, data_dir: Path) -> AsyncIterator[str]:
    position = await stores.events.start()
    reader = asyncio.create_task(stores.events.run(position))
    server = grpc_server(Settings(data_dir=data_dir, drain_seconds=0), stores)
    port = await server.start(0, SERVICES)
    yield f"127.0.0.1:{port}"
    stores.events.shut()
    await server.drain()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)


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
