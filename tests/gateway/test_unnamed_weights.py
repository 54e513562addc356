"""Unnamed weights belong to their sampling sessions: no checkpoint, kept while needed, and gone soon after."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from services.core.catalog.checkpoints import StoredCheckpoint
from services.core.catalog.garbage import GarbageCollector
from services.core.catalog.identity import Identity
from services.core.catalog.unnamed_weights import unnamed_writes
from services.core.errors import NotFoundError
from services.core.names import session_of
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.retention import KEEP_NEWEST_WEIGHTS, KEEP_SILENT_SESSION, KEEP_UNUSED_WEIGHTS
from services.core.storage.local import LocalStorage
from services.core.unnamed_weights import weights_location
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, tokens
from tests.gateway.saved import lease_of
from tinker_proto.v1 import checkpoint_pb2, operation_pb2, sampling_pb2, session_pb2, training_pb2

LONG_MS = int(KEEP_UNUSED_WEIGHTS.total_seconds() * 1000) + 1


async def save_unnamed(caller: Caller, stores: Stores, run: str) -> tuple[str, str]:
    """Saves as a trainer does; returns path and location."""
    request = training_pb2.SaveWeightsForSamplerRequest(training_run_id=run, for_sampling_session=True)
    operation = await caller.training.SaveWeightsForSampler(request)
    seq_id = int(operation.name.rpartition(":")[2])
    path, location = f"tinker://{run}/sampler_weights/seq-{seq_id}", weights_location(run, seq_id)
    with stores.checkpoints.write(location) as directory:
        (directory / "adapter_config.json").write_text(str(seq_id))
    record = checkpoint_pb2.Checkpoint(tinker_path=path, training_run_id=run, base_model=BASE, size_bytes=1)
    lease = await lease_of(stores, run)
    await stores.run_logs.skip(lease, 0)
    result = await stores.operations.result(training_pb2.SaveWeightsForSamplerResponse(path=path))
    writes = unnamed_writes("alice", StoredCheckpoint(record, location), seq_id)
    await stores.run_logs.complete(lease, seq_id, result, writes)
    return path, location


async def sampling_session(caller: Caller, run: str, path: str, number: int = 0) -> str:
    request = sampling_pb2.CreateSamplingSessionRequest(
        session_id=session_of(run), sampling_session_seq_id=number, model_path=path
    )
    return str((await caller.sampling.CreateSamplingSession(request)).sampling_session_id)


async def sample(caller: Caller, sampling: str, seq_id: int) -> operation_pb2.Operation:
    request = sampling_pb2.SampleRequest(sampling_session_id=sampling, seq_id=seq_id, prompt=tokens(1, 2))
    return await caller.sampling.Sample(request)


async def pass_time(connection: RedisConnection, location: str) -> None:
    """Lets the last use be long ago."""
    key = keyspace.unnamed_weights(location)
    await connection.commands.hincrby(key, "used", -LONG_MS)
    await connection.commands.zadd(keyspace.UNNAMED_WEIGHTS_DUE, {location: 0}, xx=True)


async def is_kept(stores: Stores, location: str) -> bool:
    """Whether files are there after the gateway's loop has looked at them."""
    await stores.catalog.unnamed_weights.remove_unneeded()
    await stores.pins.remove_unpinned()
    return stores.checkpoints.exists(location)


async def test_they_are_sampled_by_their_path_and_are_no_checkpoint(
    alice: Caller, mallory: Caller, stores: Stores, connection: RedisConnection
) -> None:
    run = await alice.run()
    path, location = await save_unnamed(alice, stores, run)
    listed = await alice.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest())
    assert not listed.checkpoints
    described = await alice.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=run))
    assert described.last_sampler_checkpoint == ""
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await alice.checkpoints.GetCheckpoint(checkpoint_pb2.GetCheckpointRequest(tinker_path=path))
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert await sample(alice, await sampling_session(alice, run, path), 0)
    own = await mallory.session()
    with pytest.raises(grpc.aio.AioRpcError, match="there is no checkpoint"):
        await mallory.sampling.CreateSamplingSession(
            sampling_pb2.CreateSamplingSessionRequest(session_id=own, model_path=path)
        )
    assert await stores.pins.is_known(location), "nobody takes the files for garbage"


async def test_a_waiting_operation_keeps_them_after_the_end_of_the_session(
    alice: Caller, stores: Stores, connection: RedisConnection
) -> None:
    run = await alice.run()
    path, location = await save_unnamed(alice, stores, run)
    sampling = await sampling_session(alice, run, path)
    for seq_id in range(2):
        await sample(alice, sampling, seq_id)
    await alice.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session_of(run)))
    await pass_time(connection, location)
    await alice.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=f"{sampling}:0"))
    await pass_time(connection, location)
    assert await is_kept(stores, location), "one operation waits"
    await alice.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=f"{sampling}:1"))
    assert await is_kept(stores, location), "its end was a use"
    await pass_time(connection, location)
    assert not await is_kept(stores, location)
    assert not await connection.commands.hexists(keyspace.stored_sizes("alice"), location)
    with pytest.raises(grpc.aio.AioRpcError, match="has ended") as ended:
        await sample(alice, sampling, 2)
    assert ended.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(NotFoundError, match="save_weights_for_sampler"):
        stores.checkpoints.open(location)


async def test_a_loop_keeps_its_newest_ones_and_what_it_still_samples(
    alice: Caller, stores: Stores, connection: RedisConnection
) -> None:
    run = await alice.run()
    saved = [await save_unnamed(alice, stores, run) for _ in range(KEEP_NEWEST_WEIGHTS + 3)]
    locations = [location for _, location in saved]
    await stores.catalog.publish_inflight(run, 1, locations[0], saved[0][0])
    for location in locations:
        await pass_time(connection, location)
    await sampling_session(alice, run, saved[1][0])
    kept = [await is_kept(stores, location) for location in locations]
    assert kept == [True, True, False, *[True] * KEEP_NEWEST_WEIGHTS]
    session = keyspace.session(session_of(run))
    await connection.commands.hincrbyfloat(session, "seen", -KEEP_SILENT_SESSION.total_seconds())
    for location in locations:
        await pass_time(connection, location)
    assert not any([await is_kept(stores, location) for location in locations])


async def test_only_what_has_neither_name_nor_lifetime_is_for_a_sampling_session(alice: Caller) -> None:
    run = await alice.run()
    for field in ({"name": "a"}, {"ttl_seconds": 3600}):
        request = training_pb2.SaveWeightsForSamplerRequest(training_run_id=run, for_sampling_session=True, **field)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError, match=f"{next(iter(field))}: must be"):
            await alice.training.SaveWeightsForSampler(request)


async def test_storage_with_nothing_else_can_be_cleaned_up(
    alice: Caller, stores: Stores, connection: RedisConnection, data_dir: Path
) -> None:
    await save_unnamed(alice, stores, await alice.run())
    storage = LocalStorage(data_dir)
    await Identity(connection, storage).establish()
    collector = GarbageCollector(connection, storage, young=-KEEP_UNUSED_WEIGHTS)
    await collector.check()
    assert [waste for waste in await collector.find() if waste.kind == "checkpoint"] == []
