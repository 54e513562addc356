"""Operations as a client sees them: accepted at once, finished once, on one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import grpc
import pytest

from services.core.names import OperationName
from services.core.queue.run_log import Lease
from services.gateway.rpc import operation as rpc_operation
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, datum, forward_backward, tokens
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import (
    capability_pb2,
    operation_pb2,
    sampling_pb2,
    session_pb2,
    training_pb2,
)

T = TypeVar("T")


async def soon(awaited: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaited, 60)


async def lease_of(stores: Stores, run: str) -> Lease:
    lease = await stores.run_logs.claim("w", run, "0-1", 60_000)
    assert lease is not None
    return lease


async def finish(stores: Stores, lease: Lease, seq_id: int, size: int = 0) -> None:
    response = training_pb2.ForwardBackwardResponse(metrics={"loss:sum": float(seq_id), "x" * size: 0.0})
    await stores.run_logs.complete(lease, seq_id, await stores.operations.result(response))


async def watch(caller: Caller, session: str, *pending: str) -> AsyncIterator[operation_pb2.Operation]:
    """Finished operations, from the moment that the watch is in place."""
    call = caller.operations.WatchOperations(
        operation_pb2.WatchOperationsRequest(session_id=session, pending=list(pending))
    )
    first = await soon(call.read())
    assert list(first.operations) == [], "the first message says that the watch is in place"

    async def operations() -> AsyncIterator[operation_pb2.Operation]:
        async for response in call:
            for operation in response.operations:
                yield operation

    return operations()


async def test_results_arrive_on_the_watch_stream_without_asking(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    operations = await watch(alice, run.partition(":")[0])
    lease = await lease_of(stores, run)
    for seq_id in (1, 2, 3):
        await alice.training.ForwardBackward(forward_backward(run, seq_id))
    for seq_id in range(4):
        await finish(stores, lease, seq_id)
    names = {(await soon(anext(operations))).name for _ in range(4)}
    assert names == {f"{run}:{seq_id}" for seq_id in range(4)}


async def test_what_finished_before_the_watch_opened_comes_first(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    lease = await lease_of(stores, run)
    await finish(stores, lease, 0)
    operations = await watch(alice, run.partition(":")[0], f"{run}:0", f"{run}:1")
    operation = await soon(anext(operations))
    assert operation.name == f"{run}:0"
    assert operation.done


async def test_a_large_result_comes_whole(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    operations = await watch(alice, run.partition(":")[0])
    lease = await lease_of(stores, run)
    await finish(stores, lease, 0, size=6_000_000)
    response = training_pb2.ForwardBackwardResponse()
    assert (await soon(anext(operations))).response.Unpack(response)
    assert max(len(name) for name in response.metrics) == 6_000_000


async def test_a_watch_of_another_sessions_operations_is_refused(alice: Caller) -> None:
    run = await alice.run()
    session = await alice.session()
    call = alice.operations.WatchOperations(
        operation_pb2.WatchOperationsRequest(session_id=session, pending=[f"{run}:0"])
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watch_ends_with_unavailable_when_the_gateway_stops(alice: Caller, stores: Stores) -> None:
    operations = await watch(alice, await alice.session())
    stores.events.shut()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await soon(anext(operations))
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_resend_returns_the_same_operation(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    first = await alice.training.ForwardBackward(forward_backward(run, 1))
    again = await alice.training.ForwardBackward(forward_backward(run, 1))
    assert first == again
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.training.ForwardBackward(forward_backward(run, 1, data=[datum(), datum()]))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS


async def test_a_resent_creation_without_a_seed_keeps_the_seed_it_drew(alice: Caller, stores: Stores) -> None:
    session = await alice.session()
    request = training_pb2.CreateTrainingRunRequest(
        session_id=session, base_model=BASE, lora_config=training_pb2.LoraConfig(rank=4)
    )
    operations = [await alice.training.CreateTrainingRun(request) for _ in range(2)]
    assert operations[0] == operations[1]
    run = await alice.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=f"{session}:train:0"))
    (entry,) = await stores.run_logs.entries(run.training_run_id, after=-1, count=9)
    job = await stores.run_logs.read_job(entry)
    assert job.create_training_run.lora_config.seed == run.lora_config.seed
    assert run.lora_config.train_unembed


async def test_what_a_creation_leaves_open_is_decided_and_recorded(alice: Caller) -> None:
    async def recorded(**config: Any) -> training_pb2.LoraConfig:
        request = training_pb2.GetTrainingRunRequest(training_run_id=await alice.run(**config))
        return (await alice.training.GetTrainingRun(request)).lora_config

    plain = await recorded(seed=1)
    assert plain == training_pb2.LoraConfig(
        rank=4, seed=1, train_mlp=True, train_attn=True, train_unembed=True, alpha=32, use_rslora=False
    )
    explicit = await recorded(seed=1, alpha=8, use_rslora=True, target_modules=["v_proj", "q_proj"])
    assert explicit == training_pb2.LoraConfig(
        rank=4, seed=1, alpha=8, use_rslora=True, target_modules=["v_proj", "q_proj"]
    )
    assert not (await recorded(train_mlp=False)).train_mlp


async def test_without_a_seq_id_equal_requests_get_the_next_ones(alice: Caller) -> None:
    run = await alice.run()
    names = await asyncio.gather(*(alice.training.ForwardBackward(forward_backward(run)) for _ in range(8)))
    assert {operation.name for operation in names} == {f"{run}:{seq_id}" for seq_id in range(1, 9)}


async def test_a_cancelled_operation_says_so_and_a_finished_one_stays(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    await alice.training.ForwardBackward(forward_backward(run, 1))
    cancelled = await alice.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=f"{run}:1"))
    assert cancelled.state == operation_pb2.OPERATION_STATE_CANCELLED
    assert cancelled.error.code == grpc.StatusCode.CANCELLED.value[0]
    await finish(stores, await lease_of(stores, run), 0)
    finished = await alice.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=f"{run}:0"))
    assert finished.state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_an_unnamed_sampler_checkpoint_gets_its_seq_id_as_name(alice: Caller, stores: Stores) -> None:
    run = await alice.run()
    request = training_pb2.SaveWeightsForSamplerRequest(training_run_id=run, seq_id=1)
    await alice.training.SaveWeightsForSampler(request)
    entry = (await stores.run_logs.entries(run, after=0, count=9))[0]
    assert (await stores.run_logs.read_job(entry)).save_weights_for_sampler.name == "seq-1"


async def test_a_sampling_job_carries_a_seed_and_its_operation_the_sessions_name(alice: Caller, stores: Stores) -> None:
    sampling = await alice.sampling_session()
    request = sampling_pb2.SampleRequest(sampling_session_id=sampling, seq_id=7, prompt=tokens(1, 2))
    operation = await alice.sampling.Sample(request)
    assert operation.name == str(OperationName(sampling, 7))
    await stores.sample_queues.join(BASE)
    (entry,) = await stores.sample_queues.take("s", BASE, free=9, block_ms=100)
    assert (await stores.sample_queues.read_job(entry)).sample.sampling_params.HasField("seed")
    assert (await alice.sampling.Sample(request)) == operation, "a resend is the same operation"


async def test_an_ended_session_opens_nothing_new(alice: Caller) -> None:
    session = await alice.session()
    ended = await alice.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
    assert ended.HasField("end_time")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.sampling.CreateSamplingSession(
            sampling_pb2.CreateSamplingSessionRequest(session_id=session, base_model=BASE)
        )
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_capabilities_are_what_live_workers_announce(
    alice: Caller, stores: Stores, workers: list[job_pb2.WorkerStatus]
) -> None:
    reply = await alice.capabilities.GetServerCapabilities(capability_pb2.GetServerCapabilitiesRequest())
    (model,) = reply.supported_models
    assert (model.model_name, model.trainable, model.sampleable, model.max_lora_rank) == (BASE, True, True, 16)
    assert list(model.loss_fns) == list(workers[0].loss_fns) != []
    for status in await stores.workers.live():
        await stores.workers.withdraw(status.worker)
    reply = await alice.capabilities.GetServerCapabilities(capability_pb2.GetServerCapabilitiesRequest())
    assert list(reply.supported_models) == []
    run_request = training_pb2.CreateTrainingRunRequest(
        session_id=await alice.session(), base_model=BASE, lora_config=training_pb2.LoraConfig(rank=4)
    )
    with pytest.raises(grpc.aio.AioRpcError) as unavailable:
        await alice.training.CreateTrainingRun(run_request)
    assert unavailable.value.code() == grpc.StatusCode.UNAVAILABLE, "its trainer may come back: a client tries again"


async def test_tokenizer_files_come_one_a_message(alice: Caller) -> None:
    call = alice.capabilities.GetTokenizer(capability_pb2.GetTokenizerRequest(base_model=BASE))
    files = {reply.file_name: reply.content async for reply in call}
    assert files == {"tokenizer.json": b"{}", "tokenizer_config.json": b"[]"}


async def test_runs_are_listed_newest_first_in_pages(alice: Caller, mallory: Caller) -> None:
    runs = [await alice.run() for _ in range(5)]
    await mallory.run()
    listed: list[str] = []
    token = ""
    while True:
        request = training_pb2.ListTrainingRunsRequest(page_size=2, page_token=token)
        page = await alice.training.ListTrainingRuns(request)
        assert page.total_size == 5
        listed += [run.training_run_id for run in page.training_runs]
        token = page.next_page_token
        if not token:
            break
    assert listed == runs[::-1]


async def test_a_watch_that_has_nothing_to_say_says_so(alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_operation, "TOUCH_EVERY_S", 0.01)
    run = await alice.run()
    request = operation_pb2.WatchOperationsRequest(session_id=run.partition(":")[0])
    watch = aiter(alice.operations.WatchOperations(request))
    for _ in range(4):
        assert not (await soon(anext(watch))).operations
