"""The operation of a stream whose caller has gone waits for it, and is cancelled if nobody comes."""

from __future__ import annotations

import grpc
import pytest

from services.core.names import OperationName
from services.gateway.rpc import sampling
from services.gateway.stores import Stores
from testing.waiting import until_true
from tests.gateway.caller import Caller, tokens
from tinker_proto.v1 import operation_pb2, sampling_pb2


async def stream(caller: Caller, session: str, *received: int) -> grpc.aio.UnaryStreamCall:  # type: ignore[type-arg]
    """Opens a stream and reads its first message."""
    generation = sampling_pb2.SampleRequest(sampling_session_id=session, seq_id=0, prompt=tokens(1), num_samples=2)
    request = sampling_pb2.SampleStreamRequest(request=generation, received=received)
    call = caller.sampling.SampleStream(request)
    await call.read()
    return call


async def state(caller: Caller, session: str) -> operation_pb2.OperationState.ValueType:
    request = operation_pb2.GetOperationRequest(name=f"{session}:0")
    return (await caller.operations.GetOperation(request)).state


async def test_a_caller_that_stays_away_cancels_its_operation(alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "RETURN_S", 0.0)
    session = await alice.sampling_session()
    (await stream(alice, session)).cancel()

    async def is_cancelled() -> bool:
        return await state(alice, session) == operation_pb2.OPERATION_STATE_CANCELLED

    await until_true(is_cancelled, what="the end of the operation")


async def test_only_the_last_reader_that_goes_away_counts(alice: Caller, stores: Stores) -> None:
    session = await alice.sampling_session()
    name = OperationName(session, 0)
    await stream(alice, session)
    await stores.tokens.join(str(name), "through another gateway")
    assert not await stores.operations.cancel(name, reader="before")
    await stream(alice, session, 3, 0)
    assert not await stores.operations.cancel(name, reader="through another gateway")
    assert await state(alice, session) == operation_pb2.OPERATION_STATE_QUEUED
    _, again = await stores.tokens.asked_after("0-0")
    assert again == [str(name)], "all that there is so far, for the one that has some"
    await stores.tokens.join(str(name), "last")
    assert await stores.operations.cancel(name, reader="last")


@pytest.mark.parametrize("received", [(1, 1, 1), (-1,)])
async def test_what_cannot_have_been_received_is_refused_by_name(alice: Caller, received: tuple[int, ...]) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="received") as refused:
        await stream(alice, await alice.sampling_session(), *received)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
