"""Sessions with what was made in them, and the metrics history of a run."""

from __future__ import annotations

import grpc
import pytest

from services.core.catalog.run_metrics import metrics_write
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, fields_at_fault, forward_backward
from tests.gateway.saved import lease_of
from tinker_proto.v1 import sampling_pb2, session_pb2, training_pb2


async def test_a_session_names_what_was_made_in_it(alice: Caller, mallory: Caller) -> None:
    session = await alice.session()
    for number in range(11):
        request = training_pb2.CreateTrainingRunRequest(
            session_id=session,
            training_run_seq_id=number,
            base_model=BASE,
            lora_config=training_pb2.LoraConfig(rank=4, seed=1),
        )
        for _ in range(2):  # a resend is no second run
            await alice.training.CreateTrainingRun(request)
    sampling = sampling_pb2.CreateSamplingSessionRequest(session_id=session, base_model=BASE)
    await alice.sampling.CreateSamplingSession(sampling)
    found = await alice.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
    assert list(found.training_run_ids) == [f"{session}:train:{number}" for number in range(11)]
    assert list(found.sampling_session_ids) == [f"{session}:sample:0"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mallory.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_sessions_are_listed_newest_first_in_pages(alice: Caller, mallory: Caller) -> None:
    made = [await alice.session() for _ in range(5)]
    await mallory.session()
    await alice.sessions.EndSession(session_pb2.EndSessionRequest(session_id=made[0]))
    found: list[session_pb2.Session] = []
    request = session_pb2.ListSessionsRequest(page_size=2)
    for _ in range(3):
        page = await alice.sessions.ListSessions(request)
        assert page.total_size == 5
        found += page.sessions
        request.page_token = page.next_page_token
    assert request.page_token == ""
    assert [item.session_id for item in found] == made[::-1]
    assert [item.HasField("end_time") for item in found] == [False] * 4 + [True]
    assert list(found[0].training_run_ids) == [], "only GetSession fills them in"


async def finish(stores: Stores, run: str, seq_id: int, loss: float) -> None:
    entry = training_pb2.TrainingMetrics(seq_id=seq_id, method="ForwardBackward", metrics={"loss:sum": loss}, tokens=4)
    result = await stores.operations.result(training_pb2.ForwardBackwardResponse())
    lease = await lease_of(stores, run)
    await stores.run_logs.complete(lease, seq_id, result, [metrics_write(run, entry)])


async def test_metrics_are_there_once_and_come_in_pages(alice: Caller, mallory: Caller, stores: Stores) -> None:
    run = await alice.run()
    for seq_id in range(1, 8):
        await alice.training.ForwardBackward(forward_backward(run, seq_id))
        for loss in (float(seq_id), -1.0):  # a second result of the same operation counts for nothing
            await finish(stores, run, seq_id, loss)
    found: list[tuple[int, float]] = []
    request = training_pb2.ListTrainingMetricsRequest(training_run_id=run, page_size=3)
    for _ in range(3):
        page = await alice.training.ListTrainingMetrics(request)
        found += [(entry.seq_id, entry.metrics["loss:sum"]) for entry in page.training_metrics]
        request.page_token = page.next_page_token
    assert request.page_token == ""
    assert found == [(seq_id, float(seq_id)) for seq_id in range(1, 8)]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mallory.training.ListTrainingMetrics(request)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    for token in ("-1", "x", "9" * 30):
        request.page_token = token
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await alice.training.ListTrainingMetrics(request)
        assert fields_at_fault(refused.value) == ["page_token"]


async def test_a_runs_history_is_bounded(
    alice: Caller, connection: RedisConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.core.catalog.run_metrics.KEPT", 100)
    run = await alice.run()
    for seq_id in range(1, 401):
        await connection.commands.execute_command(*metrics_write(run, training_pb2.TrainingMetrics(seq_id=seq_id)))
    kept = await connection.commands.xlen(keyspace.run_metrics(run))
    assert 100 <= kept < 300
    page = await alice.training.ListTrainingMetrics(training_pb2.ListTrainingMetricsRequest(training_run_id=run))
    assert page.training_metrics[-1].seq_id == 400


async def test_a_page_of_large_entries_has_as_many_as_fit_a_message(alice: Caller) -> None:
    labels = {f"{number:02d}": "v" * 1024 for number in range(64)}
    request = session_pb2.CreateSessionRequest(user_metadata=labels)
    made = [(await alice.sessions.CreateSession(request)).session_id for _ in range(30)]
    listed: list[str] = []
    sizes, token = [], ""
    while token or not sizes:
        page = await alice.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=1000, page_token=token))
        listed += [session.session_id for session in page.sessions]
        token = page.next_page_token
        sizes.append(page.ByteSize())
    assert listed == made[::-1]
    assert len(sizes) > 1
    assert max(sizes) < 1 << 20, "the smallest limit of a message"
