"""Workers of one base model agree on what they serve under its names; one that contradicts them does not start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.core.config import WorkerSettings
from services.core.errors import FailedPreconditionError
from services.core.process import worker_server
from services.core.process.worker_server import WorkerServer
from services.core.process.workers import WorkerDirectory
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tinker_proto.internal.v1 import job_pb2


@pytest.mark.parametrize(
    "other",
    [
        {"base_model": "also"},
        {"base_model": "another", "aliases": ["fixed"]},
        {"base_model": "fixed", "base_fingerprint": "0-0-1"},
    ],
    ids=["an alias is its first name", "a name is its alias", "other weights"],
)
async def test_a_worker_that_calls_something_else_by_its_name_keeps_it_from_starting(
    connection: RedisConnection, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    monkeypatch.setattr(worker_server, "EXPIRY_S", -60.0)
    directory = WorkerDirectory(connection)
    await directory.announce(job_pb2.WorkerStatus(worker="w", kind=job_pb2.WORKER_KIND_TRAINER, **other))
    status = job_pb2.WorkerStatus(worker="v", base_model="fixed", aliases=["also"], base_fingerprint="0-0-0")
    server = WorkerServer(WorkerSettings(), directory, lambda: status)
    with pytest.raises(FailedPreconditionError, match="but worker w serves '") as refused:
        await server.run(asyncio.sleep(0))
    assert refused.value.reason == "BASE_MODEL_NAME_IN_USE"
    assert [live.worker for live in await directory.live()] == ["w"]


async def test_a_dead_worker_delays_the_start_until_its_announcement_expires(
    connection: RedisConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = WorkerDirectory(connection)
    await directory.announce(job_pb2.WorkerStatus(worker="dead", base_model="fixed", base_fingerprint="0-0-1"))
    status = job_pb2.WorkerStatus(worker="v", base_model="fixed", base_fingerprint="0-0-0")
    server = WorkerServer(WorkerSettings(), directory, lambda: status)
    monkeypatch.setattr(worker_server, "HEARTBEAT_S", 0.04)
    starting = asyncio.create_task(server.run(asyncio.sleep(0)))
    await connection.commands.zadd(keyspace.WORKERS_EXPIRY, {"dead": 0})
    await (await starting)
    assert [live.worker for live in await directory.live()] == ["v"]
    await server.leave()


async def test_workers_of_one_base_model_agree(connection: RedisConnection) -> None:
    directory = WorkerDirectory(connection)
    await directory.announce(job_pb2.WorkerStatus(worker="w", base_model="a", base_fingerprint="0-0-0"))
    for status, accepted in (
        ({"base_model": "a", "base_fingerprint": "0-0-0", "aliases": ["b"]}, []),
        ({"base_model": "a"}, []),
        ({"base_model": "a", "base_fingerprint": "0-0-1"}, ["0-0-0"]),
        ({"base_model": "b", "base_fingerprint": "0-0-1"}, []),
    ):
        assert await directory.contradicting(job_pb2.WorkerStatus(worker="v", **status), accepted) is None
