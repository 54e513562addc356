"""Recovery of the catalog: what the storage has comes back to its owner, and never over another platform's data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.core.catalog.identity import Identity
from services.core.catalog.pages import PageRequest
from services.core.catalog.recovery import CatalogRecovery
from services.core.catalog.runs import Catalog
from services.core.errors import FailedPreconditionError, NotFoundError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.interface import Storage
from services.core.storage.local import LocalStorage
from services.core.storage.records import CheckpointRecord
from tests.core.test_storage import bucket, s3, s3_server
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, training_pb2

__all__ = ["bucket", "s3", "s3_server"]

RUN = "0123abcd:train:0"
ADAPTER = {"rank": 4, "alpha": 32.0, "train_attn": True, "train_mlp": True, "train_unembed": False, "seed": 7}
ADAPTER |= {"use_rslora": False, "target_modules": [], "rank_pattern": {}, "alpha_pattern": {}}


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, data_dir: Path) -> Storage:
    if request.param == "s3":
        opened: Storage = request.getfixturevalue("s3")
        return opened
    return LocalStorage(data_dir)


def path_of(name: str) -> TinkerPath:
    return TinkerPath.parse(f"tinker://{RUN}/weights/{name}")


def save(storage: Storage, name: str, seq_id: int = 5, tenant: str = "alice") -> str:
    """A checkpoint as a trainer leaves it; without a tenant it has no record."""
    store, location = CheckpointStore(storage), f"{RUN}/weights/{name}/{seq_id}"
    with store.write(location) as directory:
        (directory / "weights").write_bytes(b"x" * seq_id)
        manifest = {"base_model": "tiny/lm", "adapter": ADAPTER, "files": {"weights": "?"}}
        (directory / "checkpoint.json").write_text(json.dumps(manifest))
    if tenant:
        path = path_of(name)
        checkpoint = checkpoint_pb2.Checkpoint(
            checkpoint_id=path.checkpoint_id, tinker_path=str(path), training_run_id=RUN, base_model="tiny/lm"
        )
        checkpoint.time.FromSeconds(1_700_000_000 + seq_id)
        checkpoint.expires_at.FromSeconds(1_700_000_500)
        checkpoint.user_metadata["lamp"] = "lit"
        run = training_pb2.TrainingRun(training_run_id=RUN, base_model="tiny/lm")
        store.records.put(location, CheckpointRecord(tenant, checkpoint, run))
    return location


async def recovered(connection: RedisConnection, storage: Storage, tenant: str = "") -> dict[str, str]:
    """Recovers; the state of each checkpoint before."""
    recovery = CatalogRecovery(connection, storage)
    found = await recovery.find(tenant)
    await recovery.restore(found)
    return {item.path.name: item.problem or ("known" if item.is_known else "new") for item in found}


async def test_a_lost_catalog_comes_back_to_its_owners(connection: RedisConnection, storage: Storage) -> None:
    await Identity(connection, storage).establish()
    location = save(storage, "a", seq_id=9)
    save(storage, "a", seq_id=5)
    save(storage, "b", tenant="bob")
    await connection.commands.flushall()
    with pytest.raises(FailedPreconditionError, match="storage recover"):
        await Identity(connection, storage).establish()
    assert await recovered(connection, storage) == {"a": "new", "b": "new"}
    await Identity(connection, storage).establish()
    catalog = Catalog(connection)
    stored = await catalog.checkpoints.get(path_of("a"), "alice")
    assert stored.location == location, "the newest of its name"
    assert stored.checkpoint.user_metadata == {"lamp": "lit"}
    assert not stored.checkpoint.HasField("expires_at"), "a time to live may have been taken away since"
    assert (await catalog.run(RUN, "alice")).last_checkpoint == str(path_of("a"))
    with pytest.raises(NotFoundError):
        await catalog.checkpoints.get(path_of("b"), "alice")
    page, _ = await catalog.checkpoint_page("bob", "", PageRequest(10))
    assert [item.tinker_path for item in page] == [str(path_of("b"))]


async def test_again_is_no_harm(connection: RedisConnection, storage: Storage) -> None:
    save(storage, "a")
    assert await recovered(connection, storage) == {"a": "new"}
    save(storage, "b")
    before = await connection.commands.hgetall(keyspace.checkpoint(str(path_of("a"))))
    assert await recovered(connection, storage) == {"a": "known", "b": "new"}
    assert await connection.commands.hgetall(keyspace.checkpoint(str(path_of("a")))) == before


async def test_without_a_record_the_operator_says_whose_it_is(connection: RedisConnection, storage: Storage) -> None:
    save(storage, "a", tenant="")
    assert await recovered(connection, storage) == {"a": "its owner is not recorded: pass --tenant"}
    assert await recovered(connection, storage, "carol") == {"a": "new"}
    checkpoint = (await Catalog(connection).checkpoints.get(path_of("a"), "carol")).checkpoint
    config = checkpoint.lora_config
    assert (config.rank, config.alpha, config.seed, config.train_unembed) == (4, 32, 7, False)
    assert checkpoint.base_model == "tiny/lm"
    assert checkpoint.checkpoint_type == checkpoint_pb2.CHECKPOINT_TYPE_TRAINING


async def test_what_is_damaged_is_named_and_the_rest_comes_back(connection: RedisConnection, storage: Storage) -> None:
    save(storage, "a")
    storage.put(f"records/{RUN}/weights/a/5.json", b"{")
    save(storage, "b")
    states = await recovered(connection, storage)
    assert states["b"] == "new"
    assert "record of checkpoint" in states["a"]


async def test_another_platforms_redis_is_left_alone(connection: RedisConnection, storage: Storage) -> None:
    save(storage, "a")
    storage.put("identity", b"another\n")
    await connection.commands.hset(keyspace.IDENTITY, "id", "ours")
    with pytest.raises(FailedPreconditionError, match="belongs to another Redis"):
        await CatalogRecovery(connection, storage).find()


def test_a_record_goes_with_its_checkpoint(storage: Storage) -> None:
    location = save(storage, "a")
    store = CheckpointStore(storage)
    kept = store.records.get(location)
    assert kept is not None
    store.delete(location)
    assert store.records.get(location) is None
