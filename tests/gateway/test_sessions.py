"""How many sessions may be alive."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from services.core.catalog.sessions import GRACE, Sessions
from services.core.config import Settings
from services.core.errors import ResourceExhaustedError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tests.gateway.caller import Caller, forward_backward
from tinker_proto.v1 import operation_pb2, sampling_pb2, session_pb2, training_pb2


@pytest.fixture
def sessions(connection: RedisConnection, data_dir: Path) -> Sessions:
    return Sessions(connection, Settings(data_dir=data_dir, max_sessions_per_tenant=2, max_sessions=3))


async def test_a_tenant_has_so_many_alive_and_no_more(sessions: Sessions) -> None:
    first, _ = [await sessions.create("alice", {}) for _ in range(2)]
    with pytest.raises(ResourceExhaustedError, match=r"tenant alice already has 2 open sessions \(limit 2\)") as caught:
        await sessions.create("alice", {})
    assert caught.value.reason == "TOO_MANY_SESSIONS"
    await sessions.create("bob", {})
    with pytest.raises(ResourceExhaustedError, match=r"the platform already has 3 open sessions \(limit 3\)"):
        await sessions.create("carol", {})
    for _ in range(2):
        await sessions.end(first.session_id, "alice")
    await sessions.create("alice", {})


async def test_a_silent_session_does_not_count_until_it_calls_again(
    sessions: Sessions, connection: RedisConnection
) -> None:
    silent, heard = [await sessions.create("alice", {}) for _ in range(2)]
    long_ago = (time.time() - GRACE.total_seconds() - 1) * 1000
    for session in (silent, heard):
        for key in (keyspace.OPEN_SESSIONS, keyspace.open_sessions("alice")):
            await connection.commands.zadd(key, {session.session_id: long_ago})
    await sessions.touch(heard.session_id)
    await sessions.create("alice", {})
    with pytest.raises(ResourceExhaustedError):
        await sessions.create("alice", {})
    await sessions.end(silent.session_id, "alice")
    await sessions.touch(silent.session_id)
    assert not await sessions.is_alive(silent.session_id), "hearing of a session that has ended does not open it"


async def test_the_refusal_says_when_to_come_again(alice: Caller, connection: RedisConnection) -> None:
    many = {f"s{n}": time.time() * 1000 for n in range(Settings().max_sessions_per_tenant)}
    await connection.commands.zadd(keyspace.open_sessions("alice"), many)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await alice.sessions.CreateSession(session_pb2.CreateSessionRequest())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = dict(caught.value.trailing_metadata() or ())
    assert b"RetryInfo" in details["grpc-status-details-bin"]


async def test_an_ended_session_takes_no_more_work_and_its_run_is_kept(alice: Caller) -> None:
    run, sampling = await alice.run(), await alice.sampling_session()
    waiting = await alice.training.ForwardBackward(forward_backward(run, 1))
    for name in (run, sampling):
        await alice.sessions.EndSession(session_pb2.EndSessionRequest(session_id=name.partition(":")[0]))
    calls = [
        alice.training.ForwardBackward(forward_backward(run, 2)),
        alice.training.OptimStep(training_pb2.OptimStepRequest(training_run_id=run)),
        alice.training.SaveState(training_pb2.SaveStateRequest(training_run_id=run, name="late")),
        alice.sampling.Sample(sampling_pb2.SampleRequest(sampling_session_id=sampling)),
        alice.sampling.ComputeLogprobs(sampling_pb2.ComputeLogprobsRequest(sampling_session_id=sampling)),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "has ended; open a new one" in str(refused.value.details())
    found = await alice.operations.GetOperation(operation_pb2.GetOperationRequest(name=waiting.name))
    assert found.state == operation_pb2.OPERATION_STATE_QUEUED, "what was accepted goes on"
    kept = await alice.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=run))
    assert kept.training_run_id == run
