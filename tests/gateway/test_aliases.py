"""A base model of several names: requests by any of them are queued for its one set of workers."""

from __future__ import annotations

import grpc
import pytest

from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, forward_backward, tokens
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import capability_pb2, sampling_pb2, training_pb2

ALIAS = "Org/Alias"
WRITTEN = "org/ALIAS:peft:131072"


@pytest.fixture
def workers(workers: list[job_pb2.WorkerStatus]) -> list[job_pb2.WorkerStatus]:
    for status in workers:
        status.aliases.append(ALIAS)
    return workers


async def test_a_run_is_recorded_under_the_name_and_queued_for_the_base_model(
    alice: Caller, stores: Stores, connection: RedisConnection
) -> None:
    session = await alice.session()
    config = training_pb2.LoraConfig(rank=4)
    request = training_pb2.CreateTrainingRunRequest(session_id=session, base_model=WRITTEN, lora_config=config)
    first, again = [await alice.training.CreateTrainingRun(request) for _ in range(2)]
    assert first.name == again.name
    run = f"{session}:train:0"
    await alice.training.ForwardBackward(forward_backward(run, 1))
    assert (await stores.catalog.run_record(run, "alice")).base_model == ALIAS
    assert [fields[b"run"].decode() for _, fields in await connection.commands.xrange(keyspace.waiting_runs(BASE))] == [
        run
    ]
    assert not await connection.commands.exists(keyspace.waiting_runs(ALIAS))


async def test_samples_are_queued_for_the_base_model(alice: Caller, stores: Stores) -> None:
    request = sampling_pb2.CreateSamplingSessionRequest(session_id=await alice.session(), base_model=WRITTEN)
    sampling = await alice.sampling.CreateSamplingSession(request)
    assert sampling.base_model == ALIAS
    operation = await alice.sampling.ComputeLogprobs(
        sampling_pb2.ComputeLogprobsRequest(sampling_session_id=sampling.sampling_session_id, prompt=tokens(1, 2, 3))
    )
    await stores.sample_queues.join(BASE)
    (entry,) = await stores.sample_queues.take("w", BASE, free=1, block_ms=1)
    assert entry.operation == operation.name


async def test_every_name_is_listed_and_has_the_tokenizer(alice: Caller) -> None:
    reply = await alice.capabilities.GetServerCapabilities(capability_pb2.GetServerCapabilitiesRequest())
    assert [(model.model_name, model.trainable, model.sampleable) for model in reply.supported_models] == [
        (ALIAS, True, True),
        (BASE, True, True),
    ]
    for name in (BASE, ALIAS, WRITTEN):
        call = alice.capabilities.GetTokenizer(capability_pb2.GetTokenizerRequest(base_model=name))
        assert len([reply async for reply in call]) == 2
    with pytest.raises(grpc.aio.AioRpcError, match=f"base models served: '{ALIAS}', '{BASE}'"):
        await alice.sampling.CreateSamplingSession(
            sampling_pb2.CreateSamplingSessionRequest(session_id=await alice.session(), base_model="other")
        )


async def test_names_of_one_base_model_are_the_same(stores: Stores) -> None:
    same = stores.workers.is_same
    assert [await same(ALIAS, BASE), await same(BASE, WRITTEN), await same(ALIAS, "x"), await same("x", "y")] == [
        True,
        True,
        False,
        False,
    ]
