"""Everything that a tenant can make has a bound and an end, and does not count for another tenant."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.catalog.runs import Catalog
from services.core.catalog.sessions import Sessions
from services.core.config import Settings
from services.core.errors import FailedPreconditionError, NotFoundError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.retention import KEEP_IDLE_RUNS, KEEP_SESSIONS
from services.core.storage.local import LocalStorage
from services.core.storage.uploads import CONFIG_FILE, UploadStore
from tests.core.queue_parts import BASE, LEASE_MS, RUN, open_queues
from tinker_proto.v1 import checkpoint_pb2, sampling_pb2, training_pb2

LABELS = {"lamp": "lit" * 100}


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    return Settings(
        data_dir=data_dir,
        max_sessions_per_tenant=3,
        max_sampling_sessions_per_tenant=2,
        max_training_runs_per_tenant=2,
        max_merges_per_tenant=2,
    )


@pytest.fixture
def sessions(connection: RedisConnection, settings: Settings) -> Sessions:
    return Sessions(connection, settings)


@pytest.fixture
def catalog(connection: RedisConnection, settings: Settings) -> Catalog:
    return Catalog(connection, settings)


async def sampling(catalog: Catalog, session: str, number: int, tenant: str = "mallory") -> str:
    name = f"{session}:sample:{number}"
    await catalog.add_sampling_session(tenant, sampling_pb2.SamplingSession(sampling_session_id=name), "")
    return name


async def keys_of(connection: RedisConnection, prefix: str) -> int:
    return len(await connection.commands.keys(f"{prefix}*"))


async def test_sessions_opened_and_ended_without_end_do_not_pile_up(
    sessions: Sessions, catalog: Catalog, connection: RedisConnection
) -> None:
    kept = await sessions.create("alice", LABELS)
    open_one = await sessions.create("mallory", LABELS)
    ended = []
    for _ in range(20):
        ended.append((await sessions.create("mallory", LABELS)).session_id)
        await sampling(catalog, ended[-1], 0)
        await sessions.end(ended[-1], "mallory")
    assert await keys_of(connection, keyspace.session("")) == 1 + 2 * 3, "as many again as may be open"
    assert await keys_of(connection, keyspace.sampling_session("")) <= 2 * 3
    for session in (kept, open_one):
        assert await sessions.is_alive(session.session_id)
    for key in await connection.commands.keys(f"{keyspace.session('')}*"):
        assert 0 < await connection.commands.ttl(key) <= KEEP_SESSIONS.total_seconds()
    with pytest.raises(NotFoundError):
        await sessions.get(ended[0], "mallory")
    assert (await sessions.get(ended[-1], "mallory")).user_metadata == LABELS


async def test_old_sessions_go_with_their_sampling_sessions_and_runs_stay(
    sessions: Sessions, catalog: Catalog, connection: RedisConnection
) -> None:
    old, silent, young = [(await sessions.create("mallory", LABELS)).session_id for _ in range(3)]
    run = training_pb2.TrainingRun(training_run_id=f"{old}:train:0")
    await catalog.add_run("mallory", run)
    name = await sampling(catalog, old, 0)
    await sessions.end(old, "mallory")
    long_ago = time.time() - KEEP_SESSIONS.total_seconds() - 1
    await connection.commands.hset(keyspace.session(old), "ended", str(long_ago))
    await connection.commands.hset(keyspace.session(silent), "seen", str(long_ago))
    await sessions.forget_old(["mallory", "alice"])
    for gone in (old, silent):
        with pytest.raises(NotFoundError):
            await sessions.get(gone, "mallory")
    assert await sessions.is_alive(young)
    with pytest.raises(NotFoundError):
        await catalog.sampling_session(name, "mallory")
    assert (await catalog.run(run.training_run_id, "mallory")).training_run_id == run.training_run_id


async def test_a_request_on_a_run_does_not_bring_its_forgotten_session_back(
    sessions: Sessions, connection: RedisConnection, data_dir: Path
) -> None:
    forgotten = (await sessions.create("alice", {})).session_id
    await connection.commands.delete(keyspace.session(forgotten))
    await connection.commands.delete(keyspace.OPEN_SESSIONS, keyspace.open_sessions("alice"))
    await open_queues(connection, data_dir).enqueue(0, run=f"{forgotten}:train:0")
    assert await sessions.is_alive(forgotten), "its run stays in the trainer's memory"
    with pytest.raises(NotFoundError):
        await sessions.get(forgotten, "alice")
    assert await connection.commands.ttl(keyspace.session(forgotten)) > 0
    assert await connection.commands.zcard(keyspace.open_sessions("alice")) == 0


async def test_sampling_sessions_have_a_bound_that_ended_sessions_do_not_use_up(
    sessions: Sessions, catalog: Catalog, connection: RedisConnection
) -> None:
    session = (await sessions.create("mallory", {})).session_id
    other = (await sessions.create("alice", {})).session_id
    first, second = [await sampling(catalog, session, number) for number in range(2)]
    with pytest.raises(FailedPreconditionError, match="max_sampling_sessions_per_tenant: 2") as refused:
        await sampling(catalog, session, 2)
    assert refused.value.reason == "TOO_MANY_SAMPLING_SESSIONS"
    assert await sampling(catalog, session, 1) == second, "a resend is the same one"
    await sampling(catalog, other, 0, "alice")

    unused = (time.time() - KEEP_SESSIONS.total_seconds() - 1) * 1000
    await connection.commands.zadd(keyspace.tenant_samplings("mallory"), {first: unused, second: unused})
    await catalog.sampling_session(second, "mallory")  # a use
    await sampling(catalog, session, 3)
    with pytest.raises(NotFoundError):
        await catalog.sampling_session(first, "mallory")
    await sessions.end(session, "mallory")
    next_session = (await sessions.create("mallory", {})).session_id
    await sampling(catalog, next_session, 0)


async def test_training_runs_and_merges_have_a_bound(catalog: Catalog) -> None:
    for number in range(2):
        await catalog.add_run("mallory", training_pb2.TrainingRun(training_run_id=f"s:train:{number}"))
        await catalog.count_merge("mallory", f"s:sample:0:{number}")
    await catalog.add_run("mallory", training_pb2.TrainingRun(training_run_id="s:train:1"))
    await catalog.count_merge("mallory", "s:sample:0:1")
    with pytest.raises(FailedPreconditionError, match="max_training_runs_per_tenant: 2") as refused:
        await catalog.add_run("mallory", training_pb2.TrainingRun(training_run_id="s:train:2"))
    assert refused.value.reason == "TOO_MANY_TRAINING_RUNS"
    with pytest.raises(FailedPreconditionError, match="max_merges_per_tenant: 2") as refused:
        await catalog.count_merge("mallory", "s:sample:0:2")
    assert refused.value.reason == "TOO_MANY_MERGES"
    await catalog.add_run("alice", training_pb2.TrainingRun(training_run_id="a:train:0"))
    await catalog.count_merge("alice", "a:sample:0:0")


async def test_an_idle_run_without_a_checkpoint_goes_and_leaves_nothing(
    catalog: Catalog, connection: RedisConnection, data_dir: Path
) -> None:
    commands, queues = connection.commands, open_queues(connection, data_dir)
    long_ago = int((time.time() - KEEP_IDLE_RUNS.total_seconds() - 1) * 1000)
    idle, saved = RUN, "other:train:0"
    for run in (idle, saved):
        await catalog.add_run("alice", training_pb2.TrainingRun(training_run_id=run))
        await queues.enqueue(0, run=run)
    await commands.zadd(keyspace.run_checkpoints(saved), {"tinker://other:train:0/weights/a": 1})
    await commands.hset(keyspace.run_meta(saved), "last_request", long_ago)
    lease = await queues.logs.claim("w", idle, "0-1", LEASE_MS)
    assert lease is not None
    assert await catalog.forget_idle_runs(["alice"]) == []
    await queues.finish(lease, 0)
    await queues.logs.release(lease, BASE)
    assert await catalog.forget_idle_runs(["alice"]) == [], "it is young"
    await commands.hset(keyspace.run_meta(idle), "last_request", long_ago)
    assert await catalog.forget_idle_runs(["alice", "mallory"]) == [idle]
    left = {key.decode() for key in await commands.keys(f"*{idle}*")}
    assert left == {keyspace.operation(f"{idle}:0")}, "the result has its own lifetime"


async def test_uploads_of_a_day_have_a_bound(data_dir: Path) -> None:
    uploads = UploadStore(LocalStorage(data_dir), max_bytes=100, max_tenant_bytes=5)

    async def upload(tenant: str, content: bytes) -> str:
        async def blocks() -> AsyncIterator[bytes]:
            yield content

        digest = hashlib.sha256(content).hexdigest()
        file = checkpoint_pb2.File(name=CONFIG_FILE, size_bytes=len(content), sha256=digest)
        return await uploads.receive(tenant, file, blocks())

    await upload("mallory", b"{  }")
    with pytest.raises(FailedPreconditionError, match="max_uploaded_bytes_per_tenant: 5") as refused:
        await upload("mallory", b"{}")
    assert refused.value.reason == "UPLOAD_QUOTA"
    await upload("alice", b"{}")
