"""Checkpoints as users live with them: shared, limited in time, replaced, deleted, and listed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from services.core.catalog import pins
from services.core.errors import NotFoundError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.gateway.stores import Stores
from tests.gateway.caller import Caller, fields_at_fault
from tests.gateway.saved import save
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, sampling_pb2, session_pb2, training_pb2

YEARS_TEN = 315_360_000


def by_path(caller: Caller, path: str) -> dict[str, Awaitable[Any]]:
    """Every call that names one checkpoint by its path and returns it."""
    calls, proto = caller.checkpoints, checkpoint_pb2
    return {
        "get": calls.GetCheckpoint(proto.GetCheckpointRequest(tinker_path=path)),
        "publish": calls.PublishCheckpoint(proto.PublishCheckpointRequest(tinker_path=path)),
        "unpublish": calls.UnpublishCheckpoint(proto.UnpublishCheckpointRequest(tinker_path=path)),
        "ttl": calls.SetCheckpointTtl(proto.SetCheckpointTtlRequest(tinker_path=path, ttl_seconds=3600)),
        "files": calls.ListCheckpointFiles(proto.ListCheckpointFilesRequest(tinker_path=path)),
        "delete": calls.DeleteCheckpoint(proto.DeleteCheckpointRequest(tinker_path=path)),
    }


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def get(caller: Caller, path: str) -> checkpoint_pb2.Checkpoint:
    return await caller.checkpoints.GetCheckpoint(checkpoint_pb2.GetCheckpointRequest(tinker_path=path))


async def publish(caller: Caller, path: str) -> checkpoint_pb2.Checkpoint:
    return await caller.checkpoints.PublishCheckpoint(checkpoint_pb2.PublishCheckpointRequest(tinker_path=path))


async def delete(caller: Caller, path: str) -> checkpoint_pb2.Checkpoint:
    return await caller.checkpoints.DeleteCheckpoint(checkpoint_pb2.DeleteCheckpointRequest(tinker_path=path))


async def sampling_session(caller: Caller, path: str, session: str = "") -> str:
    request = sampling_pb2.CreateSamplingSessionRequest(session_id=session or await caller.session(), model_path=path)
    return str((await caller.sampling.CreateSamplingSession(request)).sampling_session_id)


async def expire(connection: RedisConnection, path: str) -> None:
    """Makes a checkpoint's time come."""
    past = int((datetime.now(UTC) - timedelta(seconds=1)).timestamp() * 1000)
    await connection.commands.hset(keyspace.checkpoint(path), "expires", past)
    await connection.commands.zadd(keyspace.EXPIRING, {path: past}, xx=True)


async def listed(caller: Caller, run: str = "", size: int = 1000) -> list[str]:
    found: list[str] = []
    request = checkpoint_pb2.ListCheckpointsRequest(training_run_id=run, page_size=size)
    while True:
        page = await caller.checkpoints.ListCheckpoints(request)
        found += [item.tinker_path for item in page.checkpoints]
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def test_a_checkpoint_has_what_it_was_saved_with(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    path = await save(alice, stores, run, "a", ttl_seconds=7200, user_metadata={"purpose": "demo"})
    found = await get(alice, path)
    assert dict(found.user_metadata) == {"purpose": "demo"}
    assert found.expires_at.seconds - found.time.seconds == 7200
    assert not found.public
    assert not (await get(alice, await save(alice, stores, run, "b"))).HasField("expires_at")


async def test_overwriting_replaces_labels_lifetime_and_publication(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    path = await save(alice, stores, run, "a", ttl_seconds=7200, user_metadata={"k": "old"})
    await publish(alice, path)
    await save(alice, stores, run, "a", user_metadata={"j": "new"})
    found = await get(alice, path)
    assert dict(found.user_metadata) == {"j": "new"}
    assert not found.HasField("expires_at")
    assert not found.public
    assert await listed(alice) == [path]


async def test_everybody_reads_a_published_checkpoint_and_its_owner_changes_it(
    alice: Caller, mallory: Caller, stores: Stores
) -> None:
    path = await save(alice, stores, await alice.run(), "a")
    for name, call in by_path(mallory, path).items():
        assert await code_of(call) is grpc.StatusCode.NOT_FOUND, name
    assert (await publish(alice, path)).public
    assert (await publish(alice, path)).public, "again is no error"
    codes = {name: await code_of(call) for name, call in by_path(mallory, path).items() if name != "files"}
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert codes == {
        "get": grpc.StatusCode.OK,
        "publish": denied,
        "unpublish": denied,
        "ttl": denied,
        "delete": denied,
    }
    found = await get(mallory, path)
    assert found.public
    assert not found.HasField("expires_at")
    assert await listed(mallory) == [], "a tenant's list has its own"
    await alice.checkpoints.UnpublishCheckpoint(checkpoint_pb2.UnpublishCheckpointRequest(tinker_path=path))
    assert await code_of(get(mallory, path)) is grpc.StatusCode.NOT_FOUND


async def test_a_published_checkpoint_can_be_sampled_and_loaded_by_other_tenants(
    alice: Caller, mallory: Caller, stores: Stores
) -> None:
    path = await save(alice, stores, await alice.run(), "a")
    run = await mallory.run()
    load = training_pb2.LoadStateRequest(training_run_id=run, path=path)
    create = training_pb2.CreateTrainingRunFromCheckpointRequest(session_id=await mallory.session(), path=path)
    sample = sampling_pb2.CreateSamplingSessionRequest(session_id=await mallory.session(), model_path=path)
    calls = (
        lambda: mallory.training.LoadState(load),
        lambda: mallory.training.CreateTrainingRunFromCheckpoint(create),
        lambda: mallory.sampling.CreateSamplingSession(sample),
    )
    for call in calls:
        assert await code_of(call()) is grpc.StatusCode.NOT_FOUND
    await publish(alice, path)
    for call in calls:
        assert await code_of(call()) is grpc.StatusCode.OK


@pytest.mark.parametrize("seconds", [0, -1, 3599, YEARS_TEN + 1, 2**62])
async def test_a_time_to_live_out_of_range_is_refused(alice: Caller, stores: Stores, seconds: int) -> None:
    run = await alice.run()
    path = await save(alice, stores, run, "a")
    calls = (
        alice.training.SaveState(training_pb2.SaveStateRequest(training_run_id=run, name="b", ttl_seconds=seconds)),
        alice.training.SaveWeightsForSampler(
            training_pb2.SaveWeightsForSamplerRequest(training_run_id=run, name="b", ttl_seconds=seconds)
        ),
        alice.checkpoints.SetCheckpointTtl(
            checkpoint_pb2.SetCheckpointTtlRequest(tinker_path=path, ttl_seconds=seconds)
        ),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fields_at_fault(refused.value) == ["ttl_seconds"]
        assert "3600 to 315360000" in str(refused.value.details())


async def test_labels_of_a_checkpoint_are_checked(alice: Caller) -> None:
    run = await alice.run()
    for metadata in ({"k": "v" * 32_769}, {"k" * 1025: ""}, {str(number): "" for number in range(65)}):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await alice.training.SaveState(
                training_pb2.SaveStateRequest(training_run_id=run, name="b", user_metadata=metadata)
            )
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fields_at_fault(refused.value)[0].startswith("user_metadata")


async def test_a_lifetime_can_be_set_and_removed(alice: Caller, stores: Stores, connection: RedisConnection) -> None:
    path = await save(alice, stores, await alice.run(), "a", ttl_seconds=3600)
    for seconds in (3600, YEARS_TEN):
        request = checkpoint_pb2.SetCheckpointTtlRequest(tinker_path=path, ttl_seconds=seconds)
        changed = await alice.checkpoints.SetCheckpointTtl(request)
        left = changed.expires_at.ToDatetime(UTC) - datetime.now(UTC)
        assert seconds - 60 < left.total_seconds() <= seconds + 1
    forever = await alice.checkpoints.SetCheckpointTtl(checkpoint_pb2.SetCheckpointTtlRequest(tinker_path=path))
    assert not forever.HasField("expires_at")
    await stores.catalog.checkpoints.remove_expired()
    assert await connection.commands.zcard(keyspace.EXPIRING) == 0
    assert (await get(alice, path)) == forever


async def test_an_expired_checkpoint_exists_for_no_call_and_its_files_go(
    alice: Caller, stores: Stores, connection: RedisConnection
) -> None:
    run = await alice.run()
    path = await save(alice, stores, run, "a", ttl_seconds=3600)
    other = await save(alice, stores, run, "b")
    location = await stores.catalog.checkpoints.location_of(TinkerPath.parse(path))
    await expire(connection, path)
    for name, call in by_path(alice, path).items():
        assert await code_of(call) is grpc.StatusCode.NOT_FOUND, name
    assert await code_of(sampling_session(alice, path)) is grpc.StatusCode.NOT_FOUND
    assert await listed(alice) == [other]
    page = await alice.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest())
    assert page.total_size == 1
    newest = await alice.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=run))
    assert newest.last_checkpoint == other
    assert stores.checkpoints.exists(location)
    removed = await asyncio.gather(*(stores.pins.remove_unpinned() for _ in range(3)))
    assert max(removed) == 1, "several gateways at it do no harm"
    assert not stores.checkpoints.exists(location)
    assert await stores.pins.remove_unpinned() == 0


async def test_an_expired_name_can_be_saved_again(alice: Caller, stores: Stores, connection: RedisConnection) -> None:
    run = await alice.run()
    path = await save(alice, stores, run, "a", ttl_seconds=3600)
    location = await stores.catalog.checkpoints.location_of(TinkerPath.parse(path))
    await expire(connection, path)
    await save(alice, stores, run, "a")
    await stores.catalog.checkpoints.remove_expired()
    assert await listed(alice) == [path]
    await stores.pins.remove_unpinned()
    assert not stores.checkpoints.exists(location), "what it replaced is gone"
    assert stores.checkpoints.exists(await stores.catalog.checkpoints.location_of(TinkerPath.parse(path)))


async def test_a_sampling_session_keeps_its_files_until_its_session_has_ended(
    alice: Caller, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await alice.run()
    path = await save(alice, stores, run, "a", kind="sampler_weights")
    location = await stores.catalog.checkpoints.location_of(TinkerPath.parse(path))
    session = await alice.session()
    await sampling_session(alice, path, session)
    monkeypatch.setattr(pins, "LOOK_AGAIN", timedelta(0))
    assert (await delete(alice, path)).tinker_path == path
    assert await code_of(get(alice, path)) is grpc.StatusCode.NOT_FOUND
    assert await code_of(delete(alice, path)) is grpc.StatusCode.NOT_FOUND
    assert await stores.pins.remove_unpinned() == 0
    assert stores.checkpoints.exists(location), "a request under way still reads them"
    await alice.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
    assert await stores.pins.remove_unpinned() == 0, "what it has queued is still carried out"
    monkeypatch.setattr(pins, "KEEP_AFTER_END", timedelta(0))
    assert await stores.pins.remove_unpinned() == 1
    assert not stores.checkpoints.exists(location)


async def test_a_session_that_is_silent_for_long_pins_nothing(
    alice: Caller, stores: Stores, connection: RedisConnection
) -> None:
    path = await save(alice, stores, await alice.run(), "a")
    location = await stores.catalog.checkpoints.location_of(TinkerPath.parse(path))
    session = await alice.session()
    await sampling_session(alice, path, session)
    silent_since = (datetime.now(UTC) - pins.KEEP_SILENT).timestamp()
    await connection.commands.hset(keyspace.session(session), "seen", silent_since)
    await delete(alice, path)
    assert not stores.checkpoints.exists(location)


async def test_deleting_without_a_pin_removes_files_at_once_for_one_caller(alice: Caller, stores: Stores) -> None:
    path = await save(alice, stores, await alice.run(), "a")
    location = await stores.catalog.checkpoints.location_of(TinkerPath.parse(path))
    codes = await asyncio.gather(*(code_of(delete(alice, path)) for _ in range(8)))
    assert sorted(code.name for code in codes) == ["NOT_FOUND"] * 7 + ["OK"]
    assert not stores.checkpoints.exists(location)


async def test_the_two_part_form_means_the_only_one_of_its_name(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    short = f"tinker://{run}/a"
    assert await code_of(get(alice, short)) is grpc.StatusCode.NOT_FOUND
    path = await save(alice, stores, run, "a", kind="sampler_weights")
    assert (await get(alice, short)).tinker_path == path
    assert (await publish(alice, short)).tinker_path == path
    training = await save(alice, stores, run, "a")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await delete(alice, short)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await delete(alice, path)
    assert (await delete(alice, short)).tinker_path == training


HOSTILE_PATHS = (
    "",
    "/etc/passwd",
    "tinker://",
    "tinker:///weights/a",
    "tinker://r:train:0/weights/..",
    "tinker://../weights/a",
    "tinker://r:train:0/weights/../../x",
    "tinker://r:train:0/weights/%2e%2e",
    "tinker://r:train:0/weights/a%00",
    "tinker://r:train:0/weights/a\0",
    "tinker://r:train:0/weights/" + "a" * 300,
    "tinker://" + "r" * 300 + "/weights/a",
    "tinker://r:train:0/weights/sampler_weights/a",
    "tinker://r:train:0/exports/a",
    "tinker://r:train:0/weights",
    "tinker://r:train:0/weights/a/adapter_model.safetensors",
    "file:///etc/passwd",
    "TINKER://r:train:0/weights/a",
    "tinker://r:train:0/weights/é",
    "tinker://r:train:0\\weights\\a",
)


@pytest.mark.parametrize("path", HOSTILE_PATHS)
async def test_hostile_paths_are_refused_by_every_method(alice: Caller, path: str) -> None:
    run, session = await alice.run(), await alice.session()
    calls = {
        **by_path(alice, path),
        "load": alice.training.LoadState(training_pb2.LoadStateRequest(training_run_id=run, path=path)),
        "create": alice.training.CreateTrainingRunFromCheckpoint(
            training_pb2.CreateTrainingRunFromCheckpointRequest(session_id=session, path=path)
        ),
        "sample": alice.sampling.CreateSamplingSession(
            sampling_pb2.CreateSamplingSessionRequest(session_id=session, model_path=path)
        ),
        "read": alice.checkpoints.ReadFile(checkpoint_pb2.ReadFileRequest(tinker_path=path, name="x")).read(),
    }
    for name, call in calls.items():
        assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT, name


async def test_pages_neither_repeat_nor_skip_while_others_come_and_go(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    same_time = datetime.now(UTC)
    names = [await save(alice, stores, run, f"n{number}", when=same_time) for number in range(9)]
    request = checkpoint_pb2.ListCheckpointsRequest(training_run_id=run, page_size=2)
    found: list[str] = []
    for turn in range(9):
        page = await alice.checkpoints.ListCheckpoints(request)
        found += [item.tinker_path for item in page.checkpoints]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await save(alice, stores, run, f"later{turn}")
        if turn < 2:
            await delete(alice, found[-1])  # the one that the cursor names
    assert found == names[::-1]


async def test_a_page_token_that_is_none_is_refused(alice: Caller) -> None:
    for token in ("0", "é", "AAAA", "a" * 1000, "\0", "MQ=="):
        for call in (
            alice.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest(page_token=token)),
            alice.training.ListTrainingRuns(training_pb2.ListTrainingRunsRequest(page_token=token)),
            alice.sessions.ListSessions(session_pb2.ListSessionsRequest(page_token=token)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert fields_at_fault(refused.value) == ["page_token"]


async def test_a_run_names_its_newest_checkpoints(alice: Caller, stores: Stores) -> None:
    run, empty = await alice.run(), await alice.run()
    await save(alice, stores, run, "a")
    newest = await save(alice, stores, run, "b")
    sampler = await save(alice, stores, run, "c", kind="sampler_weights")
    listed_runs = (await alice.training.ListTrainingRuns(training_pb2.ListTrainingRunsRequest())).training_runs
    assert [item.training_run_id for item in listed_runs] == [empty, run]
    assert (listed_runs[1].last_checkpoint, listed_runs[1].last_sampler_checkpoint) == (newest, sampler)
    assert (listed_runs[0].last_checkpoint, listed_runs[0].last_sampler_checkpoint) == ("", "")
    await delete(alice, newest)
    left = await alice.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=run))
    assert left.last_checkpoint.endswith("/weights/a")


async def test_two_clients_that_save_and_delete_never_see_a_half_checkpoint(alice: Caller, stores: Stores) -> None:
    runs = [await alice.run() for _ in range(2)]

    async def live(run: str) -> None:
        for number in range(15):
            path = await save(alice, stores, run, f"n{number % 3}")
            if number % 2:
                await delete(alice, path)

    seen: list[str] = []

    async def look() -> None:
        while not all(task.done() for task in living):
            for path in await listed(alice, size=2):
                with suppress(NotFoundError, FileNotFoundError):  # deleted meanwhile
                    stored = await stores.catalog.checkpoints.get(TinkerPath.parse(path), "alice")
                    files = [file.name for file in stores.checkpoints.open(stored.location).iterdir()]
                    assert files == ["adapter_config.json"]
                    seen.append(path)

    living = [asyncio.create_task(live(run)) for run in runs]
    await asyncio.gather(look(), *living)
    assert seen
