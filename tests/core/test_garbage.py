"""Garbage: what nobody needs goes, and nothing that anybody needs. Verification: damage is found by name."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from obstore.store import S3Store
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.core.catalog import pins
from services.core.catalog.checkpoints import StoredCheckpoint, checkpoint_writes
from services.core.catalog.garbage import GarbageCollector
from services.core.catalog.identity import Identity
from services.core.catalog.pins import Pins
from services.core.catalog.runs import Catalog
from services.core.catalog.sessions import Sessions
from services.core.catalog.verification import verify_checkpoints
from services.core.config import Settings
from services.core.errors import FailedPreconditionError, NotFoundError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.queue.payloads import Payloads, blob_of
from services.core.storage.blobs import BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.exports import ExportStore
from services.core.storage.interface import Storage, Stored
from services.core.storage.local import LocalStorage
from services.core.storage.uploads import UploadStore
from tests.core.test_storage import bucket, s3, s3_server
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2

__all__ = ["bucket", "s3", "s3_server"]

RUN = "0123abcd:train:0"
NOW = timedelta(0)


@pytest.fixture
def storage(request: pytest.FixtureRequest, data_dir: Path) -> Storage:
    if getattr(request, "param", "local") == "s3":
        opened: Storage = request.getfixturevalue("s3")
        return opened
    return LocalStorage(data_dir)


either = pytest.mark.parametrize("storage", ["local", "s3"], indirect=True)


def write(storage: Storage, name: str, seq_id: int = 5) -> str:
    location = f"{RUN}/weights/{name}/{seq_id}"
    with storage.write_directory(f"checkpoints/{location}") as directory:
        (directory / "weights").write_bytes(b"x" * 100)
        files = {"weights": hashlib.sha256(b"x" * 100).hexdigest()}
        (directory / "checkpoint.json").write_text(json.dumps({"files": files}))
    return location


async def enter(connection: RedisConnection, location: str) -> TinkerPath:
    run, _, name, _ = location.split("/")
    path = TinkerPath(run, "weights", name)
    record = checkpoint_pb2.Checkpoint(
        tinker_path=str(path), training_run_id=run, checkpoint_type=checkpoint_pb2.CHECKPOINT_TYPE_TRAINING
    )
    for write in checkpoint_writes("alice", StoredCheckpoint(record, location), ""):
        await connection.commands.execute_command(*write)
    return path


async def found(connection: RedisConnection, storage: Storage, young: timedelta = NOW) -> dict[str, str]:
    return {waste.key: waste.kind for waste in await GarbageCollector(connection, storage, young=young).find()}


async def collect(connection: RedisConnection, storage: Storage) -> None:
    collector = GarbageCollector(connection, storage, young=NOW)
    for waste in await collector.find():
        assert await collector.remove(waste)


@either
async def test_checkpoints_go_when_no_path_names_them_and_nobody_pins_them(
    connection: RedisConnection, storage: Storage
) -> None:
    named, lost, sampled, replayed = (write(storage, name) for name in ("named", "lost", "sampled", "replayed"))
    await enter(connection, named)
    overwritten = write(storage, "named", 3)
    commands = connection.commands
    await commands.hset(keyspace.session("0123abcd"), mapping={"tenant": "alice", "seen": time.time()})
    await commands.sadd(keyspace.PINS + sampled, "0123abcd")
    await commands.sadd(keyspace.PINS + replayed, f"{RUN}:7")
    await commands.hset(keyspace.run_meta(RUN), "done_seq", 9)
    await commands.hset(keyspace.run_sources(RUN), 7, replayed)
    assert await found(connection, storage) == {lost: "checkpoint", overwritten: "checkpoint"}
    assert await found(connection, storage, timedelta(hours=1)) == {}
    await collect(connection, storage)
    kept = {stored.key.removeprefix("checkpoints/") for stored in storage.directories("checkpoints")}
    assert kept == {named, sampled, replayed}
    await commands.hdel(keyspace.run_sources(RUN), 7)
    await commands.hset(keyspace.session("0123abcd"), "ended", time.time() - 7200)
    assert set(await found(connection, storage)) >= {sampled, replayed}


async def test_pins_of_those_who_are_gone_do_not_gather(
    connection: RedisConnection, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sessions, catalog = (
        await enter(connection, write(storage, "a")),
        Sessions(connection, Settings()),
        Catalog(connection),
    )
    ended, running = [(await sessions.create("alice", {})).session_id for _ in range(2)]
    for pinned_by in (ended, running, f"{RUN}:7"):
        location = (await catalog.checkpoints.pin(path, "alice", pinned_by)).location
    await sessions.end(ended, "alice")
    kept = Pins(connection, CheckpointStore(storage))
    await kept.forget_gone()
    assert len(await connection.commands.smembers(keyspace.PINS + location)) == 3, "an hour for what it has queued"
    monkeypatch.setattr(pins, "KEEP_AFTER_END", timedelta(0))
    await connection.commands.hset(keyspace.run_meta(RUN), "done_seq", 7)
    await kept.forget_gone()
    assert await connection.commands.smembers(keyspace.PINS + location) == {running.encode()}


async def test_what_goes_while_it_is_looked_at_is_not_found(
    connection: RedisConnection, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, listed = write(storage, "going"), CheckpointStore.all

    def listed_and_gone(checkpoints: CheckpointStore) -> Iterator[tuple[str, Stored]]:
        found = list(listed(checkpoints))
        checkpoints.delete(location)
        return iter(found)

    assert location in await found(connection, storage)
    monkeypatch.setattr(CheckpointStore, "all", listed_and_gone)
    assert await found(connection, storage) == {}


async def test_what_is_named_between_finding_and_removing_stays(connection: RedisConnection, storage: Storage) -> None:
    location = write(storage, "late")
    collector = GarbageCollector(connection, storage, young=NOW)
    (waste,) = await collector.find()
    await enter(connection, location)
    assert not await collector.remove(waste)
    assert storage.has_directory(f"checkpoints/{location}")


@either
async def test_blobs_stay_while_a_log_a_queue_or_a_result_refers_to_them(
    connection: RedisConnection, storage: Storage
) -> None:
    payloads, big = Payloads(BlobStore(storage)), b"x" * 100_000
    logged, early, waiting, taken = [await payloads.pack("jobs", big) for _ in range(4)]
    result, orphan = [await payloads.pack("results", big) for _ in range(2)]
    tokenizer = await BlobStore(storage).put_once("tokenizers", big)
    commands = connection.commands
    await commands.xadd(keyspace.run_log(RUN), {"entry": logged}, id="5-1")
    await commands.hset(keyspace.run_early(RUN), 7, early)
    await commands.hset(keyspace.sample_jobs("tiny/lm"), "w", waiting)
    await commands.xadd(keyspace.sample_queue("tiny/lm"), {"operation": "x", "entry": taken})
    await commands.hset(keyspace.operation(f"{RUN}:4"), mapping={"state": "succeeded", "response": result})
    assert await found(connection, storage) == {blob_of(orphan): "blob"}
    await collect(connection, storage)
    for kept in (logged, early, waiting, taken, result):
        assert await payloads.unpack(kept) == big
    assert await BlobStore(storage).get(tokenizer) == big


async def test_old_uploads_exports_and_unfinished_writes_go(
    connection: RedisConnection, storage: Storage, data_dir: Path
) -> None:
    storage.put("uploads/2020-01-01/a", b"a")
    with storage.write_directory("exports/s:sample:0:1") as directory:
        (directory / "model").write_bytes(b"x")
    killed = storage.write_directory("checkpoints/killed")
    (killed.__enter__() / "weights").write_bytes(b"half")
    kinds = set((await found(connection, storage)).values())
    assert kinds == {"unfinished write"}, "the others have not had their day"
    two_days_ago = time.time() - 2 * 86_400
    for path in data_dir.rglob("*"):
        os.utime(path, (two_days_ago, two_days_ago))
    assert set((await found(connection, storage, timedelta(days=1))).values()) == {
        "unfinished write",
        "upload",
        "export",
    }
    await collect(connection, storage)
    assert [path for path in data_dir.rglob("*") if path.is_file()] == []
    assert ExportStore(storage).expired() == []
    assert UploadStore(storage, 1).expired() == []


async def test_verification_names_what_is_damaged_and_what_is_lost(
    connection: RedisConnection, storage: Storage, data_dir: Path
) -> None:
    locations = {name: write(storage, name) for name in ("whole", "flipped", "short", "missing", "unlisted", "lost")}
    paths = {name: await enter(connection, location) for name, location in locations.items()}
    files = {name: data_dir / "checkpoints" / location for name, location in locations.items()}
    (files["flipped"] / "weights").write_bytes(b"x" * 99 + b"y")
    (files["short"] / "weights").write_bytes(b"x" * 99)
    (files["missing"] / "weights").unlink()
    (files["unlisted"] / "checkpoint.json").write_text("{")
    storage.delete_directory(f"checkpoints/{locations['lost']}")
    problems = {item.location: item.problem for item in await verify_checkpoints(connection, storage)}
    assert problems.pop(locations["whole"]) == ""
    assert len(problems) == 5
    expected = {"flipped": "weights", "short": "weights", "missing": "weights", "unlisted": "checkpoint.json"}
    for name, file in expected.items():
        assert problems[locations[name]].startswith(f"{file} of checkpoint {locations[name]} is ")
    assert "gone" in problems[locations["lost"]]
    (one,) = await verify_checkpoints(connection, storage, [paths["whole"]])
    assert (one.location, one.problem) == (locations["whole"], "")
    with pytest.raises(NotFoundError, match="weights/never"):
        await verify_checkpoints(connection, storage, [TinkerPath(RUN, "weights", "never")])


async def test_what_is_deleted_while_it_is_verified_is_not_called_damaged(
    connection: RedisConnection, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    locations = [write(storage, name) for name in ("deleted", "whole")]
    verify = CheckpointStore.verify

    def deleted_first(checkpoints: CheckpointStore, location: str) -> None:
        if location == locations[0]:
            checkpoints.delete(location)
        verify(checkpoints, location)

    monkeypatch.setattr(CheckpointStore, "verify", deleted_first)
    found = await verify_checkpoints(connection, storage)
    assert [(item.location, item.problem) for item in found] == [(locations[1], "")]


async def test_verification_finds_damage_in_s3_too(connection: RedisConnection, s3: Storage, bucket: S3Store) -> None:
    whole, flipped, missing = (write(s3, name) for name in ("whole", "flipped", "missing"))
    for stored in bucket.list().collect():
        if stored["path"].endswith("/weights") and "/flipped/" in stored["path"]:
            bucket.put(stored["path"], b"x" * 99 + b"y")
        elif stored["path"].endswith("/weights") and "/missing/" in stored["path"]:
            bucket.delete(stored["path"])
    problems = {item.location: item.problem for item in await verify_checkpoints(connection, s3)}
    assert problems.pop(whole) == ""
    assert problems.keys() == {flipped, missing}
    assert all("weights" in problem for problem in problems.values())


def grow_old(data_dir: Path) -> None:
    two_days_ago = time.time() - 2 * 86_400
    for path in data_dir.rglob("*"):
        os.utime(path, (two_days_ago, two_days_ago))


def gc(redis_url: str, data_dir: Path, *options: str) -> Result:
    given = ["--redis-url", redis_url, "--data-dir", str(data_dir), *options]
    return CliRunner().invoke(app, ["storage", "gc", *given])


@either
async def test_a_collection_without_any_checkpoint_in_the_catalog_needs_consent(
    connection: RedisConnection, storage: Storage
) -> None:
    collector = GarbageCollector(connection, storage)
    await Identity(connection, storage).establish()
    await collector.check()
    location = write(storage, "a")
    with pytest.raises(FailedPreconditionError, match="--delete-all-checkpoints") as refused:
        await collector.check()
    assert refused.value.reason == "CATALOG_EMPTY"
    await collector.check(delete_all_checkpoints=True)
    await enter(connection, location)
    await collector.check()


async def test_consent_does_not_reach_the_storage_of_another_redis(
    connection: RedisConnection, storage: Storage
) -> None:
    write(storage, "a")
    with pytest.raises(FailedPreconditionError) as refused:
        await GarbageCollector(connection, storage).check(delete_all_checkpoints=True)
    assert refused.value.reason == "REDIS_EMPTY"


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--delete-all-checkpoints"]])
@pytest.mark.parametrize("platform_has_id", [True, False])
def test_a_collection_over_a_fresh_redis_deletes_nothing_and_says_why(
    redis_url: str,
    connection: RedisConnection,
    storage: Storage,
    data_dir: Path,
    options: list[str],
    platform_has_id: bool,
) -> None:
    location = write(storage, "a")
    if platform_has_id:
        storage.put("identity", b"0123\n")
    grow_old(data_dir)
    before = sorted(data_dir.rglob("*"))
    refused = gc(redis_url, data_dir, *options)
    assert isinstance(refused.exception, FailedPreconditionError)
    assert refused.exception.reason == "REDIS_EMPTY"
    assert location not in refused.output
    assert sorted(data_dir.rglob("*")) == before


def test_a_collection_deletes_all_checkpoints_only_with_consent(
    redis_url: str, connection: RedisConnection, storage: Storage, data_dir: Path
) -> None:
    location = write(storage, "a")
    with redis.Redis.from_url(redis_url) as commands:
        commands.hset(keyspace.training_run(RUN), "tenant", "alice")
    grow_old(data_dir)
    refused = gc(redis_url, data_dir)
    assert isinstance(refused.exception, FailedPreconditionError)
    assert storage.has_directory(f"checkpoints/{location}")
    assert gc(redis_url, data_dir, "--delete-all-checkpoints").exit_code == 0
    assert not storage.has_directory(f"checkpoints/{location}")


def test_the_commands_say_what_they_found_and_end_with_it(
    redis_url: str, connection: RedisConnection, storage: Storage, data_dir: Path
) -> None:
    location = write(storage, "a")
    with redis.Redis.from_url(redis_url) as commands:
        commands.hset(keyspace.checkpoint(str(TinkerPath(RUN, "weights", "other"))), "tenant", "alice")
    options = ["--redis-url", redis_url, "--data-dir", str(data_dir)]
    runner = CliRunner()
    verified = runner.invoke(app, ["storage", "verify", *options])
    assert (verified.exit_code, location in verified.output) == (0, True)
    (data_dir / "checkpoints" / location / "weights").write_bytes(b"y")
    damaged = runner.invoke(app, ["storage", "verify", *options])
    assert damaged.exit_code == 1
    assert "weights of checkpoint" in damaged.output
    two_days_ago = time.time() - 2 * 86_400
    os.utime(data_dir / "checkpoints" / location, (two_days_ago, two_days_ago))
    dry = runner.invoke(app, ["storage", "gc", "--dry-run", *options])
    assert (dry.exit_code, location in dry.output, storage.has_directory(f"checkpoints/{location}")) == (0, True, True)
    collected = runner.invoke(app, ["storage", "gc", *options])
    assert (collected.exit_code, storage.has_directory(f"checkpoints/{location}")) == (0, False)
