"""Identity: a Redis and a storage that do not belong together are refused, before anything is written to either."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.core.catalog.identity import Identity
from services.core.errors import FailedPreconditionError, UnavailableError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.storage.interface import Storage
from services.core.storage.local import LocalStorage
from tests.core.test_storage import bucket, s3, s3_server

__all__ = ["bucket", "s3", "s3_server"]

RUN = "0123abcd:train:0"
CHECKPOINT = f"tinker://{RUN}/weights/a"


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, data_dir: Path) -> Storage:
    if request.param == "s3":
        opened: Storage = request.getfixturevalue("s3")
        return opened
    return LocalStorage(data_dir)


@pytest.fixture
def identity(connection: RedisConnection, storage: Storage) -> Identity:
    return Identity(connection, storage)


def fill(storage: Storage, root: str = "checkpoints") -> None:
    with storage.write_directory(f"{root}/{RUN}/weights/a/5") as directory:
        (directory / "weights").write_bytes(b"x")


async def id_in(connection: RedisConnection) -> str:
    return (await connection.commands.hget(keyspace.IDENTITY, "id") or b"").decode()


def id_of(storage: Storage) -> str:
    return storage.get("identity").decode().strip()


async def refusal(connection: RedisConnection, storage: Storage) -> FailedPreconditionError:
    """The error of a check; establishing gives the same one, and changes neither Redis nor the storage."""
    identity = Identity(connection, storage)
    keys, had_id = await connection.commands.keys(), storage.has_file("identity")
    with pytest.raises(FailedPreconditionError) as checked:
        await identity.check()
    with pytest.raises(FailedPreconditionError) as established:
        await identity.establish()
    assert str(established.value) == str(checked.value)
    assert (await connection.commands.keys(), storage.has_file("identity")) == (keys, had_id)
    return checked.value


async def test_a_new_platform_has_one_id_that_stays(
    connection: RedisConnection, storage: Storage, identity: Identity
) -> None:
    await identity.check()
    assert not storage.has_file("identity")
    assert await id_in(connection) == ""
    await identity.establish()
    first = id_of(storage)
    assert len(first) == 32
    assert await id_in(connection) == first
    fill(storage)
    await Identity(connection, storage).check()
    await Identity(connection, storage).establish()
    assert (await id_in(connection), id_of(storage)) == (first, first)


async def test_gateways_that_start_at_once_agree(connection: RedisConnection, storage: Storage) -> None:
    await asyncio.gather(*(Identity(connection, storage).establish() for _ in range(8)))
    assert id_of(storage) == await id_in(connection) != ""


@pytest.mark.parametrize("key", [keyspace.run_meta(RUN), keyspace.training_run(RUN), keyspace.checkpoint(CHECKPOINT)])
async def test_a_platform_from_before_ids_gets_one(
    connection: RedisConnection, storage: Storage, identity: Identity, key: str
) -> None:
    fill(storage)
    await connection.commands.hset(key, "tenant", "alice")
    await identity.check()
    await identity.establish()
    assert id_of(storage) == await id_in(connection) != ""


async def test_what_workers_store_before_the_first_gateway_starts_is_no_data(
    connection: RedisConnection, storage: Storage, identity: Identity
) -> None:
    storage.put("blobs/tokenizers/a", b"x")
    await identity.establish()
    assert id_of(storage) == await id_in(connection) != ""


@pytest.mark.parametrize("root", ["checkpoints", "snapshots"])
async def test_a_fresh_redis_over_a_storage_in_use_is_refused(
    connection: RedisConnection, storage: Storage, root: str
) -> None:
    fill(storage, root)
    await connection.commands.set(keyspace.DOWNLOAD_SECRET, "made at the start")
    refused = await refusal(connection, storage)
    assert refused.reason == "REDIS_EMPTY"
    assert "--storage-url" in refused.message


async def test_a_redis_that_was_lost_is_refused(
    connection: RedisConnection, storage: Storage, identity: Identity
) -> None:
    await identity.establish()
    fill(storage)
    await connection.commands.flushall()
    refused = await refusal(connection, storage)
    assert refused.reason == "REDIS_EMPTY"
    assert id_of(storage) in refused.message


async def test_another_redis_is_refused(connection: RedisConnection, storage: Storage, identity: Identity) -> None:
    await identity.establish()
    await connection.commands.hset(keyspace.IDENTITY, "id", "0123")
    refused = await refusal(connection, storage)
    assert refused.reason == "STORAGE_OF_ANOTHER_REDIS"
    assert id_of(storage) in refused.message
    assert "0123" in refused.message


async def test_a_redis_with_runs_and_no_id_is_refused_by_a_storage_with_one(
    connection: RedisConnection, storage: Storage, identity: Identity
) -> None:
    await identity.establish()
    await connection.commands.flushall()
    await connection.commands.hset(keyspace.training_run(RUN), "tenant", "alice")
    assert (await refusal(connection, storage)).reason == "STORAGE_OF_ANOTHER_REDIS"


async def test_an_empty_storage_gets_the_id_of_its_redis_and_one_in_use_does_not(
    connection: RedisConnection, storage: Storage, identity: Identity
) -> None:
    await identity.establish()
    storage.delete_file("identity")
    await identity.establish()
    assert id_of(storage) == await id_in(connection)
    storage.delete_file("identity")
    fill(storage)
    assert (await refusal(connection, storage)).reason == "STORAGE_OF_ANOTHER_REDIS"


class _Unreachable(LocalStorage):
    """A storage that cannot be written."""

    def put(self, key: str, content: bytes) -> None:
        raise UnavailableError(f"{key} is not written", reason="STORAGE_UNAVAILABLE")


async def test_a_start_that_ended_between_its_two_writes_is_completed_by_the_next(
    connection: RedisConnection, data_dir: Path
) -> None:
    with pytest.raises(UnavailableError):
        await Identity(connection, _Unreachable(data_dir)).establish()
    claimed, storage = await id_in(connection), LocalStorage(data_dir)
    assert claimed
    await connection.commands.hset(keyspace.training_run(RUN), "tenant", "alice")
    fill(storage)  # the platform of before has continued
    await Identity(connection, storage).check()
    await Identity(connection, storage).establish()
    assert (await id_in(connection), id_of(storage)) == (claimed, claimed)
