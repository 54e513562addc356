"""The log of a run: order, exactly one result, and one fenced consumer."""

from __future__ import annotations

import random

import pytest

from services.core.catalog.api_keys import ApiKeys
from services.core.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    ResourceExhaustedError,
    from_operation_error,
)
from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.run_log import Beginning, FencedError, Lease
from tests.core.queue_parts import BASE, LEASE_MS, RUN, Queues
from tinker_proto.v1 import operation_pb2, training_pb2


async def lease_of(queues: Queues, worker: str = "w1", lease_ms: int = LEASE_MS) -> Lease:
    lease = await queues.logs.claim(worker, RUN, "0-1", lease_ms)
    assert lease is not None
    return lease


async def seq_ids(queues: Queues) -> list[int]:
    return [entry.seq_id for entry in await queues.logs.entries(RUN, after=-1, count=1000)]


async def test_operations_that_arrive_in_any_order_are_logged_by_seq_id(queues: Queues) -> None:
    order = list(range(30))
    random.Random(0).shuffle(order)
    for seq_id in order:
        await queues.enqueue(seq_id)
    assert await seq_ids(queues) == list(range(30))


async def test_an_early_operation_waits_for_the_gap_to_close(queues: Queues) -> None:
    await queues.enqueue(0)
    await queues.enqueue(2)
    assert await queues.state(2) == operation_pb2.OPERATION_STATE_PARKED
    assert await seq_ids(queues) == [0]
    await queues.enqueue(1)
    assert await queues.state(2) == operation_pb2.OPERATION_STATE_QUEUED
    assert await seq_ids(queues) == [0, 1, 2]


async def test_a_resend_is_the_same_operation_and_is_logged_once(queues: Queues) -> None:
    assert await queues.enqueue(0)
    assert not await queues.enqueue(0)
    assert await seq_ids(queues) == [0]


async def test_a_used_seq_id_refuses_another_request(queues: Queues) -> None:
    await queues.enqueue(0)
    with pytest.raises(AlreadyExistsError, match="already exists with a different request; use a new seq_id"):
        await queues.enqueue(0, digest="another")


async def test_a_refused_operation_fails_in_its_place_and_the_next_goes_on(queues: Queues) -> None:
    await queues.enqueue(0)
    await queues.enqueue(1, refusal=InvalidArgumentError.at("name", "is bad"))
    await queues.enqueue(2)
    lease = await lease_of(queues)
    begun = [await queues.logs.begin(lease, seq_id) for seq_id in await seq_ids(queues)]
    assert begun == [True, False, True]
    refused = await queues.operations.get(f"{RUN}:1", "alice")
    assert isinstance(from_operation_error(refused.error), InvalidArgumentError)
    assert refused.error.field_violations[0].field == "name"
    assert await queues.logs.skipped_seq_ids(RUN) == {1}


async def test_a_full_log_says_when_to_come_back_and_room_returns(queues: Queues) -> None:
    for seq_id in range(100):
        await queues.enqueue(seq_id)
    with pytest.raises(ResourceExhaustedError) as refused:
        await queues.enqueue(100)
    assert refused.value.retry_after_s > 0
    lease = await lease_of(queues)
    await queues.finish(lease, 0)
    assert await queues.enqueue(100)


async def test_an_operation_far_ahead_is_refused_rather_than_parked_for_ever(queues: Queues) -> None:
    with pytest.raises(ResourceExhaustedError):
        await queues.enqueue(5000)


async def test_a_result_is_stored_once_and_survives_in_the_record(queues: Queues) -> None:
    await queues.enqueue(0)
    lease = await lease_of(queues)
    assert await queues.logs.begin(lease, 0)
    await queues.finish(lease, 0)
    second = await queues.operations.result(training_pb2.SaveStateResponse(path="another"))
    await queues.logs.complete(lease, 0, second)
    operation = await queues.operations.get(f"{RUN}:0", "alice")
    response = training_pb2.SaveStateResponse()
    assert operation.done
    assert operation.response.Unpack(response)
    assert response.path == "p0"
    assert await queues.connection.commands.xlen(keyspace.EVENTS) == 1


async def test_writes_become_visible_with_the_result_and_only_with_it(queues: Queues) -> None:
    await queues.enqueue(0)
    old, new = await lease_of(queues, "w1"), await lease_of(queues, "w1")
    result = await queues.operations.result(training_pb2.SaveStateResponse())
    with pytest.raises(FencedError):
        await queues.logs.complete(old, 0, result, [("SET", "{tinker}:mark", "old")])
    assert await queues.connection.commands.get("{tinker}:mark") is None
    await queues.logs.complete(new, 0, result, [("SET", "{tinker}:mark", "new"), ("SADD", "{tinker}:set", 1, 2)])
    assert await queues.connection.commands.get("{tinker}:mark") == b"new"
    assert await queues.connection.commands.scard("{tinker}:set") == 2


async def test_large_jobs_and_results_stay_out_of_redis(queues: Queues) -> None:
    await queues.enqueue(0, size=200_000)
    lease = await lease_of(queues)
    (entry,) = await queues.logs.entries(RUN, after=-1, count=10)
    assert len(entry.packed_job) < 200
    assert len((await queues.logs.read_job(entry)).save_state.name) == 200_000
    result = await queues.operations.result(training_pb2.SaveStateResponse(path="y" * 100_000))
    assert len(result.content) < 200
    await queues.logs.complete(lease, 0, result)
    response = training_pb2.SaveStateResponse()
    (await queues.operations.get(f"{RUN}:0", "alice")).response.Unpack(response)
    assert response.path == "y" * 100_000


async def test_another_tenant_does_not_see_an_operation(queues: Queues) -> None:
    await queues.enqueue(0)
    assert await queues.operations.states([f"{RUN}:0"], "mallory") == {}


async def test_a_lease_excludes_others_until_it_expires(queues: Queues) -> None:
    held = await lease_of(queues, "w1")
    assert await queues.logs.claim("w2", RUN, "0-1", LEASE_MS) is None
    assert await queues.logs.renew([held], lease_ms=0) == [held]
    assert (await lease_of(queues, "w2")).epoch == 2


async def test_an_owner_that_slept_past_its_lease_changes_nothing(queues: Queues) -> None:
    await queues.enqueue(0)
    old = await lease_of(queues, "w1")
    assert await queues.logs.begin(old, 0)
    new = await lease_of(queues, "w1")
    with pytest.raises(FencedError):
        await queues.logs.begin(old, 0)
    with pytest.raises(FencedError):
        await queues.finish(old, 0)
    assert await queues.logs.renew([old, new], LEASE_MS) == [new]
    assert await queues.state(0) == operation_pb2.OPERATION_STATE_RUNNING


async def test_epochs_grow_over_a_release(queues: Queues) -> None:
    first = await lease_of(queues)
    await queues.logs.release(first, BASE)
    second = await lease_of(queues, "w2")
    assert second.epoch > first.epoch
    assert await queues.logs.renew([first], LEASE_MS) == []


async def test_a_run_waits_once_and_after_a_release_from_its_next_operation(queues: Queues) -> None:
    waiting = keyspace.waiting_runs(BASE)
    commands = queues.connection.commands
    await queues.enqueue(0)
    await queues.enqueue(1)
    ((entry_id, _),) = await commands.xrange(waiting)
    lease = await queues.logs.claim("w1", RUN, entry_id.decode(), LEASE_MS)
    assert lease is not None
    await queues.finish(lease, 0)
    await queues.finish(lease, 1)
    await queues.logs.release(lease, BASE)
    assert await commands.xlen(waiting) == 0
    await queues.enqueue(2)
    assert await commands.xlen(waiting) == 1


async def test_a_released_run_with_work_waits_again_at_once(queues: Queues) -> None:
    await queues.enqueue(0)
    ((entry_id, _),) = await queues.connection.commands.xrange(keyspace.waiting_runs(BASE))
    lease = await queues.logs.claim("w1", RUN, entry_id.decode(), LEASE_MS)
    assert lease is not None
    await queues.logs.release(lease, BASE)
    ((again, fields),) = await queues.connection.commands.xrange(keyspace.waiting_runs(BASE))
    assert again != entry_id
    assert fields == {b"run": RUN.encode()}


async def test_a_cancelled_operation_keeps_its_place_and_does_not_run(queues: Queues) -> None:
    for seq_id in range(3):
        await queues.enqueue(seq_id)
    assert await queues.operations.cancel(OperationName(RUN, 1))
    assert not await queues.operations.cancel(OperationName(RUN, 1))
    lease = await lease_of(queues)
    assert [await queues.logs.begin(lease, seq_id) for seq_id in range(3)] == [True, False, True]
    assert await queues.state(1) == operation_pb2.OPERATION_STATE_CANCELLED
    assert not await queues.operations.cancel(OperationName(RUN, 0)), "it has begun"


async def test_a_cancelled_early_operation_does_not_run_when_its_turn_comes(queues: Queues) -> None:
    await queues.enqueue(1)
    assert await queues.operations.cancel(OperationName(RUN, 1))
    await queues.enqueue(0)
    lease = await lease_of(queues)
    assert [await queues.logs.begin(lease, seq_id) for seq_id in range(2)] == [True, False]


async def test_a_job_that_kills_its_workers_fails_by_name(queues: Queues) -> None:
    await queues.enqueue(0)
    for _ in range(2):
        assert await queues.logs.begin(await lease_of(queues), 0)
    assert not await queues.logs.begin(await lease_of(queues), 0)
    operation = await queues.operations.get(f"{RUN}:0", "alice")
    assert operation.error.reason == "WORKER_DIED"
    assert operation.error.message == f"operation {RUN}:0 failed: its worker crashed 2 times while running it"
    assert await queues.connection.commands.xlen(keyspace.DEAD) == 1


async def test_the_mark_of_done_follows_completion(queues: Queues) -> None:
    await queues.enqueue(0)
    await queues.enqueue(1)
    assert await queues.logs.done_seq_id(RUN) == -1
    lease = await lease_of(queues)
    await queues.finish(lease, 0)
    assert await queues.logs.done_seq_id(RUN) == 0
    assert await seq_ids(queues) == [0, 1], "finished entries stay: they are what a replay needs"


async def test_what_was_begun_together_is_never_blamed_and_must_run_alone_next(queues: Queues) -> None:
    await queues.enqueue(0)
    for _ in range(5):
        lease = await lease_of(queues)
        assert await queues.logs.begin_together(lease, 0) is (
            Beginning.BEGUN if lease.epoch == 1 else Beginning.MUST_RUN_ALONE
        )
    assert await queues.state(0) == operation_pb2.OPERATION_STATE_RUNNING
    for begins in (True, True, False):
        lease = await lease_of(queues)
        assert await queues.logs.begin(lease, 0) is begins, "its own deaths count"
    assert await queues.logs.begin_together(lease, 0) is Beginning.FINISHED_ALREADY


async def test_a_fenced_worker_begins_nothing(queues: Queues) -> None:
    await queues.enqueue(0)
    old = await lease_of(queues)
    await lease_of(queues)
    with pytest.raises(FencedError):
        await queues.logs.begin_together(old, 0)


async def test_a_beginning_whose_reply_is_lost_is_no_second_attempt(queues: Queues) -> None:
    await queues.enqueue(0)
    lease = await lease_of(queues)
    assert all([await queues.logs.begin(lease, 0) for _ in range(5)])
    assert await queues.logs.begin(await lease_of(queues), 0), "its workers have died once"


@pytest.mark.parametrize("together", [False, True])
async def test_an_operation_of_a_tenant_whose_last_key_is_revoked_never_begins(queues: Queues, together: bool) -> None:
    keys = ApiKeys(queues.connection)
    _, spare = await keys.create("alice")
    _, last = await keys.create("alice")
    for seq_id in range(2):
        await queues.enqueue(seq_id)
    lease = await lease_of(queues)
    await keys.revoke(spare.key_id)
    assert await queues.logs.begin(lease, 0)
    await keys.revoke(last.key_id)
    if together:
        assert await queues.logs.begin_together(lease, 1) is Beginning.FINISHED_ALREADY
    else:
        assert not await queues.logs.begin(lease, 1)
    operation = await queues.operations.get(f"{RUN}:1", "alice")
    assert (operation.state, operation.error.reason) == (operation_pb2.OPERATION_STATE_CANCELLED, "KEY_REVOKED")
    assert await queues.logs.skipped_seq_ids(RUN) == {1}, "a replay leaves it out"
