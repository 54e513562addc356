"""A revoked key: what its callers have open ends, and so does waiting work of a tenant without another key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, forward_backward, open_caller, tokens
from tests.gateway.test_operations import finish, lease_of, soon, watch
from tinker_proto.v1 import operation_pb2, sampling_pb2

CANCELLED = operation_pb2.OPERATION_STATE_CANCELLED
QUEUED = operation_pb2.OPERATION_STATE_QUEUED
SUCCEEDED = operation_pb2.OPERATION_STATE_SUCCEEDED


async def key_id(stores: Stores, tenant: str) -> str:
    (found,) = [key.key_id for key in await stores.api_keys.list() if key.tenant == tenant]
    return found


async def states(stores: Stores, tenant: str, names: Sequence[str]) -> set[int]:
    return set((await stores.operations.states(names, tenant)).values())


async def sample(caller: Caller, session: str, seq_id: int) -> str:
    request = sampling_pb2.SampleRequest(sampling_session_id=session, seq_id=seq_id, prompt=tokens(1))
    return str((await caller.sampling.Sample(request)).name)


async def test_open_streams_end_with_their_key_and_no_others(
    alice: Caller, mallory: Caller, stores: Stores, address: str
) -> None:
    run = await mallory.run()
    session, sampling = run.partition(":")[0], await mallory.sampling_session()
    ending = await watch(mallory, session)
    stream = mallory.sampling.SampleStream(
        sampling_pb2.SampleStreamRequest(
            request=sampling_pb2.SampleRequest(sampling_session_id=sampling, seq_id=0, prompt=tokens(1))
        )
    )
    await soon(stream.read())
    revoked = await key_id(stores, "mallory")
    other_key, _ = await stores.api_keys.create("mallory")
    async with open_caller(address, other_key) as same_tenant:
        staying = [await watch(same_tenant, session), await watch(alice, await alice.session())]
        await stores.api_keys.revoke(revoked)
        for ended in (anext(ending), stream.read()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await soon(ended)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        await same_tenant.training.ForwardBackward(forward_backward(run, 1))
        await finish(stores, await lease_of(stores, run), 0)
        assert (await soon(anext(staying[0]))).name == f"{run}:0", "who has another key goes on"


async def test_work_that_waits_ends_with_the_last_key_and_results_stay(
    alice: Caller, mallory: Caller, stores: Stores, address: str
) -> None:
    run, sampling, others = await mallory.run(), await mallory.sampling_session(), await alice.sampling_session()
    await finish(stores, await lease_of(stores, run), 0)
    await mallory.training.ForwardBackward(forward_backward(run, 1))
    await mallory.training.ForwardBackward(forward_backward(run, 3))
    samples = [await sample(mallory, sampling, seq_id) for seq_id in range(3)]
    kept = await sample(alice, others, 0)
    await stores.sample_queues.join(BASE)
    (running, *_) = await stores.sample_queues.take("s", BASE, free=1, block_ms=100)
    assert await stores.sample_queues.begin("s", running)
    waiting = [*samples, f"{run}:1", f"{run}:3"]

    spare_key, spare = await stores.api_keys.create("mallory")
    first = next(key.key_id for key in await stores.api_keys.list() if key.tenant == "mallory" and key != spare)
    await stores.api_keys.revoke(first)
    async with open_caller(address, spare_key) as caller:  # its work is its tenant's, which has another key
        ending = await watch(caller, run.partition(":")[0])
        assert CANCELLED not in await states(stores, "mallory", waiting)
        await stores.api_keys.revoke(spare.key_id)
        with pytest.raises(grpc.aio.AioRpcError):
            await soon(anext(ending))
    async with asyncio.timeout(60):
        for name in waiting:
            with stores.events.expect(name) as news:
                while (await stores.operations.get(name, "mallory")).state != CANCELLED:
                    await news.wait()
    assert await states(stores, "alice", [kept]) <= {QUEUED, operation_pb2.OPERATION_STATE_RUNNING}

    new_key, _ = await stores.api_keys.create("mallory")
    async with open_caller(address, new_key) as caller:
        done = await caller.operations.GetOperation(operation_pb2.GetOperationRequest(name=f"{run}:0"))
        assert done.state == SUCCEEDED, "a new key of the tenant reads what there was"
        ended = await caller.operations.GetOperation(operation_pb2.GetOperationRequest(name=samples[0]))
        assert ended.error.reason == "KEY_REVOKED"
        assert await sample(caller, sampling, 9)
