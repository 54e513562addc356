"""A result that is larger than a message concerns its operation alone: others arrive, and it is read apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2

from services.core.config import Settings
from services.gateway.main import SERVICES, grpc_server
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, forward_backward, open_caller, tokens
from tinker_proto.v1 import operation_pb2, sampling_pb2, training_pb2

MESSAGE_BYTES = 1 << 20


@pytest.fixture
async def caller(stores: Stores, data_dir: Path) -> AsyncIterator[Caller]:
    """Alice, at a gateway with small messages."""
    reader = asyncio.create_task(stores.events.run(await stores.events.start()))
    server = grpc_server(Settings(data_dir=data_dir, drain_seconds=0, max_message_bytes=MESSAGE_BYTES), stores)
    key, _ = await stores.api_keys.create("alice")
    async with open_caller(f"127.0.0.1:{await server.start(0, SERVICES)}", key) as caller:
        yield caller
    stores.events.shut()
    await server.drain()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)


def response(size: int) -> training_pb2.ForwardBackwardResponse:
    return training_pb2.ForwardBackwardResponse(metrics={"x" * size: 0.0})


async def run_with_results(caller: Caller, stores: Stores, *sizes: int) -> str:
    """A run whose first operations have ended with responses of these sizes."""
    run = await caller.run()
    lease = await stores.run_logs.claim("w", run, "0-1", 60_000)
    assert lease is not None
    for seq_id in range(1, len(sizes)):
        await caller.training.ForwardBackward(forward_backward(run, seq_id))
    for seq_id, size in enumerate(sizes):
        await stores.run_logs.complete(lease, seq_id, await stores.operations.result(response(size)))
    return run


async def read(caller: Caller, name: str, offset: int = 0) -> bytes:
    request = operation_pb2.ReadResponseRequest(name=name, offset=offset)
    return b"".join([part.content async for part in caller.operations.ReadResponse(request)])


async def test_a_watch_brings_the_others_and_the_large_one_is_read_apart(caller: Caller, stores: Stores) -> None:
    size = 3 * MESSAGE_BYTES
    run = await run_with_results(caller, stores, 10, size, 20)
    names = [f"{run}:{seq_id}" for seq_id in range(3)]
    request = operation_pb2.WatchOperationsRequest(session_id=run.partition(":")[0], pending=names)
    watch, arrived = caller.operations.WatchOperations(request), {}
    while len(arrived) < 3:
        arrived |= {operation.name: operation for operation in (await watch.read()).operations}
    assert [arrived[name].WhichOneof("outcome") for name in names] == ["response", "stored_response", "response"]
    assert all(operation.done for operation in arrived.values())

    content, stored = await read(caller, names[1]), arrived[names[1]].stored_response
    packed = any_pb2.Any()
    packed.Pack(response(size))
    assert content == packed.SerializeToString()
    assert stored.size_bytes == len(content)
    assert await read(caller, names[1], offset=size) == content[size:]


async def test_a_caller_says_how_much_it_takes_in_a_message(caller: Caller, stores: Stores) -> None:
    name = f"{await run_with_results(caller, stores, 300)}:0"
    request = operation_pb2.GetOperationRequest(name=name)
    assert (await caller.operations.GetOperation(request)).HasField("response")
    request.max_response_bytes = 100
    stored = (await caller.operations.GetOperation(request)).stored_response
    assert stored.size_bytes == len(await read(caller, name)) > 300


async def test_a_stored_response_is_its_tenants_alone(caller: Caller, mallory: Caller, stores: Stores) -> None:
    name = f"{await run_with_results(caller, stores, 10)}:0"
    for asker, asked, code in (
        (mallory, name, grpc.StatusCode.NOT_FOUND),
        (caller, name[:-1] + "7", grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read(asker, asked)
        assert refused.value.code() == code
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(caller, name, offset=10_000)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_of_tokens_ends_with_a_result_larger_than_a_message(caller: Caller, stores: Stores) -> None:
    sampling = await caller.sampling_session()
    asked = sampling_pb2.SampleRequest(sampling_session_id=sampling, seq_id=1, prompt=tokens(1), num_samples=1)
    stream = caller.sampling.SampleStream(sampling_pb2.SampleStreamRequest(request=asked))
    await stream.read()
    await stores.sample_queues.join(BASE)
    (entry,) = await stores.sample_queues.take("s", BASE, free=9, block_ms=100)
    await stores.sample_queues.complete(BASE, entry, await stores.operations.result(response(2 * MESSAGE_BYTES)))
    assert (await stream.read()).operation.HasField("stored_response")
