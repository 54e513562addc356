"""Files out of and into the gateway: only what is listed is read, and only what is promised is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from services.core.catalog.checkpoints import StoredCheckpoint, checkpoint_writes
from services.core.queue.connection import RedisConnection
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, fields_at_fault
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, sampling_pb2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONTENT = bytes(range(256)) * 10_000


async def save(stores: Stores, connection: RedisConnection, tenant: str, run: str) -> str:
    """What a trainer would have saved."""
    path = TinkerPath(run, "weights", "a")
    location = f"{run}/weights/a/1"
    contents = {CONFIG: b"{}", WEIGHTS: CONTENT, "optimizer.safetensors": b"secret"}
    with stores.checkpoints.write(location) as directory:
        for name, content in contents.items():
            (directory / name).write_bytes(content)
        files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        (directory / "checkpoint.json").write_text(json.dumps({"files": files}))
    record = checkpoint_pb2.Checkpoint(
        tinker_path=str(path),
        training_run_id=run,
        base_model=BASE,
        checkpoint_type=checkpoint_pb2.CHECKPOINT_TYPE_TRAINING,
    )
    for write in checkpoint_writes(tenant, StoredCheckpoint(record, location), ""):
        await connection.commands.execute_command(*write)
    return str(path)


async def read(caller: Caller, **fields: object) -> bytes:
    request = checkpoint_pb2.ReadFileRequest(**fields)
    return b"".join([message.content async for message in caller.checkpoints.ReadFile(request)])


async def upload(caller: Caller, content: bytes = b"{}", **changes: object) -> str:
    fields = {"name": CONFIG, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes}

    def requests() -> Iterator[checkpoint_pb2.UploadFileRequest]:
        yield checkpoint_pb2.UploadFileRequest(file=checkpoint_pb2.File(**fields))
        for start in range(0, len(content), 1 << 20):
            yield checkpoint_pb2.UploadFileRequest(content=content[start : start + (1 << 20)])

    return str((await caller.checkpoints.UploadFile(requests())).upload_id)


async def test_a_checkpoint_is_read_as_a_peft_directory_from_any_offset(
    alice: Caller, stores: Stores, connection: RedisConnection
) -> None:
    path = await save(stores, connection, "alice", await alice.run())
    listing = await alice.checkpoints.ListCheckpointFiles(checkpoint_pb2.ListCheckpointFilesRequest(tinker_path=path))
    files = {file.name: file for file in listing.files}
    assert files.keys() == {CONFIG, WEIGHTS}
    assert files[WEIGHTS].size_bytes == len(CONTENT)
    assert files[WEIGHTS].sha256 == hashlib.sha256(CONTENT).hexdigest()
    for offset in (0, 1, 1 << 20, len(CONTENT) - 1, len(CONTENT)):
        assert await read(alice, tinker_path=path, name=WEIGHTS, offset=offset) == CONTENT[offset:]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": "optimizer.safetensors"}, grpc.StatusCode.NOT_FOUND),
        ({"name": "checkpoint.json"}, grpc.StatusCode.NOT_FOUND),
        ({"name": "../../../redis/x"}, grpc.StatusCode.NOT_FOUND),
        ({"name": "/etc/passwd"}, grpc.StatusCode.NOT_FOUND),
        ({"name": "\0"}, grpc.StatusCode.NOT_FOUND),
        ({"name": "a" * 300}, grpc.StatusCode.NOT_FOUND),
        ({"name": WEIGHTS, "offset": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"name": WEIGHTS, "offset": len(CONTENT) + 1}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=repr,
)
async def test_nothing_else_is_read(
    alice: Caller, stores: Stores, connection: RedisConnection, fields: dict[str, object], code: grpc.StatusCode
) -> None:
    path = await save(stores, connection, "alice", await alice.run())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(alice, tinker_path=path, **fields)
    assert caught.value.code() is code


async def test_another_tenants_files_do_not_exist(
    alice: Caller, mallory: Caller, stores: Stores, connection: RedisConnection
) -> None:
    run = await alice.run()
    path = await save(stores, connection, "alice", run)
    for fields in ({"tinker_path": path}, {"operation": f"{run}:0"}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(mallory, name=WEIGHTS, **fields)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    listing = checkpoint_pb2.ListCheckpointFilesRequest(tinker_path=path)
    with pytest.raises(grpc.aio.AioRpcError, match="there is no checkpoint"):
        await mallory.checkpoints.ListCheckpointFiles(listing)


async def test_everybody_downloads_a_published_checkpoint_until_it_is_private(
    alice: Caller, mallory: Caller, stores: Stores, connection: RedisConnection
) -> None:
    path = await save(stores, connection, "alice", await alice.run())
    await alice.checkpoints.PublishCheckpoint(checkpoint_pb2.PublishCheckpointRequest(tinker_path=path))
    listing = checkpoint_pb2.ListCheckpointFilesRequest(tinker_path=path)
    assert {file.name for file in (await mallory.checkpoints.ListCheckpointFiles(listing)).files} == {CONFIG, WEIGHTS}
    assert await read(mallory, tinker_path=path, name=WEIGHTS) == CONTENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(mallory, tinker_path=path, name="optimizer.safetensors")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await alice.checkpoints.UnpublishCheckpoint(checkpoint_pb2.UnpublishCheckpointRequest(tinker_path=path))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(mallory, tinker_path=path, name=WEIGHTS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_files_of_an_operation_that_writes_none_are_refused(alice: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=r"must be a MergeWeights \(got .*a CreateTrainingRun\)"):
        await read(alice, operation=f"{await alice.run()}:0", name=WEIGHTS)


async def test_a_truncated_file_is_named(
    alice: Caller, stores: Stores, connection: RedisConnection, data_dir: Path
) -> None:
    run = await alice.run()
    path = await save(stores, connection, "alice", run)
    (data_dir / "checkpoints" / run / "weights/a/1" / WEIGHTS).unlink()
    with pytest.raises(grpc.aio.AioRpcError, match=rf"{WEIGHTS} of checkpoint .* is missing") as caught:
        await read(alice, tinker_path=path, name=CONFIG)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "../evil"}, "file.name"),
        ({"name": "/etc/passwd"}, "file.name"),
        ({"name": "a" * 300}, "file.name"),
        ({"name": "adapter_config.json\0"}, "file.name"),
        ({"name": "adapter_model.bin"}, "file.name"),
        ({"size_bytes": 0}, "file.size_bytes"),
        ({"size_bytes": 2**62}, "file.size_bytes"),
        ({"size_bytes": 5}, "content"),
        ({"size_bytes": 1}, "content"),
        ({"sha256": "../" * 21 + "a"}, "file.sha256"),
        ({"sha256": "0" * 64}, "content"),
    ],
    ids=repr,
)
async def test_what_is_not_what_it_says_is_not_stored(
    alice: Caller, data_dir: Path, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(alice, b"{} ", **changes)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(caught.value) == [field]
    assert [path for path in (data_dir / "uploads").rglob("*") if path.is_file()] == []


async def test_an_import_wants_its_own_uploads_of_the_right_files(
    alice: Caller, mallory: Caller, stores: Stores
) -> None:
    config = await upload(alice, json.dumps({"r": 4}).encode())
    weights = await upload(alice, CONTENT, name=WEIGHTS)
    session = await alice.session()

    def request(**changes: object) -> checkpoint_pb2.ImportCheckpointRequest:
        fields = {"session_id": session, "base_model": BASE, "name": "a", "config_upload_id": config}
        return checkpoint_pb2.ImportCheckpointRequest(**{**fields, "weights_upload_id": weights, **changes})

    refused = [
        (request(config_upload_id=weights, weights_upload_id=config), "config_upload_id"),
        (request(weights_upload_id="../../checkpoints"), "weights_upload_id"),
        (request(weights_upload_id=""), "weights_upload_id"),
        (request(name=".."), "name"),
        (request(name="a/b"), "name"),
        (request(name="a" * 201), "name"),
        (request(ttl_seconds=60), "ttl_seconds"),
        (request(training_run_seq_id=-1), "training_run_seq_id"),
        (request(base_model="other/lm"), "base_model"),
        (request(config_upload_id=await upload(alice, b'{"r": 17}')), "config_upload_id"),
        (request(config_upload_id=await upload(alice, b"[" * 100_000)), "config_upload_id"),
    ]
    for bad, field in refused:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await alice.checkpoints.ImportCheckpoint(bad)
        assert fields_at_fault(caught.value) == [field]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mallory.checkpoints.ImportCheckpoint(request(session_id=await mallory.session()))
    assert fields_at_fault(caught.value) == ["config_upload_id"]
    first = await alice.checkpoints.ImportCheckpoint(request())
    assert first.name == f"{session}:train:0:0"
    assert (await alice.checkpoints.ImportCheckpoint(request())).name == first.name
    with pytest.raises(grpc.aio.AioRpcError, match="already exists with a different request; use a new seq_id"):
        await alice.checkpoints.ImportCheckpoint(request(name="b"))


async def test_a_merge_wants_a_checkpoint(alice: Caller) -> None:
    request = sampling_pb2.MergeWeightsRequest(sampling_session_id=await alice.sampling_session())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await alice.sampling.MergeWeights(request)
    assert fields_at_fault(caught.value) == ["sampling_session_id"]


async def test_what_a_merge_has_written_is_read_by_its_owner_once_it_is_done(
    alice: Caller, mallory: Caller, stores: Stores, connection: RedisConnection, data_dir: Path
) -> None:
    path = await save(stores, connection, "alice", await alice.run())
    pinned = sampling_pb2.CreateSamplingSessionRequest(session_id=await alice.session(), model_path=path)
    sampling = (await alice.sampling.CreateSamplingSession(pinned)).sampling_session_id
    name = (await alice.sampling.MergeWeights(sampling_pb2.MergeWeightsRequest(sampling_session_id=sampling))).name

    async def code_of(caller: Caller, **fields: object) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(caller, **fields)
        code = caught.value.code()
        assert isinstance(code, grpc.StatusCode)
        return code

    assert await code_of(alice, operation=name, name="model") is grpc.StatusCode.FAILED_PRECONDITION
    with stores.exports.write(name) as directory:
        (directory / "model").write_bytes(CONTENT)
        (directory / "templates").mkdir()
        (directory / "templates" / "50%2F.jinja").write_bytes(b"nested")
    merged = sampling_pb2.MergeWeightsResponse(files=stores.exports.files(name))
    await stores.sample_queues.join(BASE)
    (entry,) = await stores.sample_queues.take("w", BASE, free=1, block_ms=1000)
    job = await stores.sample_queues.read_job(entry)
    assert job.checkpoint_location == path.removeprefix("tinker://") + "/1"
    await stores.sample_queues.complete(BASE, entry, await stores.operations.result(merged))
    scope, _, seq_id = name.rpartition(":")
    for alias in (name, f"{scope}:0{seq_id}"):
        assert await read(alice, operation=alias, name="model", offset=7) == CONTENT[7:]
    assert [file.name for file in merged.files] == ["model", "templates/50%2F.jinja"]
    assert await read(alice, operation=name, name="templates/50%2F.jinja") == b"nested"
    assert await code_of(alice, operation=name, name="../other/model") is grpc.StatusCode.NOT_FOUND
    assert await code_of(mallory, operation=name, name="model") is grpc.StatusCode.NOT_FOUND
    (data_dir / "exports" / name).rename(data_dir / "swept")
    with pytest.raises(grpc.aio.AioRpcError, match="kept for a day"):
        await read(alice, operation=name, name="model")
