"""Limits of what waits: of a run, of a tenant, in all; in operations, sampling requests and bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.core.errors import InvalidArgumentError, ResourceExhaustedError
from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.operations import OperationStore
from tests.core.queue_parts import BASE, LEASE_MS, LIMITS, RUN, SAMPLING, Queues
from tinker_proto.v1 import operation_pb2

OTHER = "other:train:0"


async def load(queues: Queues, tenant: str | None = None) -> dict[str, int]:
    key = keyspace.LOAD if tenant is None else keyspace.load(tenant)
    counts = await queues.connection.commands.hgetall(key)
    return {name.decode(): int(count) for name, count in counts.items()}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            replace(LIMITS, operations_of_run=2),
            rf"training run {RUN} already has 2 queued operations \(limit 2\); retry later",
        ),
        (
            replace(LIMITS, operations_of_tenant=2),
            r"tenant alice already has 2 queued operations \(limit 2\); retry later",
        ),
        (replace(LIMITS, operations=2), r"the platform already has 2 queued operations \(limit 2\); retry later"),
        (
            replace(LIMITS, request_bytes_of_tenant=2500),
            r"tenant alice already has \d+ queued request bytes \(limit 2500\)",
        ),
        (replace(LIMITS, request_bytes=2500), r"the platform already has \d+ queued request bytes \(limit 2500\)"),
    ],
    ids=["run", "tenant", "all", "tenant-bytes", "all-bytes"],
)
async def test_an_operation_over_a_limit_is_refused_until_there_is_room(
    queues: Queues, limits: object, message: str
) -> None:
    queues = replace(queues, limits=limits)
    for seq_id in (0, 1):
        await queues.enqueue(seq_id, size=1000)
    with pytest.raises(ResourceExhaustedError, match=message) as caught:
        await queues.enqueue(2, size=1000)
    assert (caught.value.reason, caught.value.retry_after_s > 0) == ("QUEUE_FULL", True)
    assert not await queues.enqueue(1, size=1000), "a resend of what was accepted is not refused"
    lease = await queues.logs.claim("w1", RUN, "0-1", LEASE_MS)
    assert lease is not None
    await queues.finish(lease, 0)
    assert await queues.enqueue(2, size=1000)


async def test_another_tenant_is_not_refused_for_it(queues: Queues) -> None:
    queues = replace(queues, limits=replace(LIMITS, operations_of_tenant=1, samples_of_tenant=1))
    await queues.enqueue(0)
    await queues.enqueue_sample(0)
    assert await queues.enqueue(0, run=OTHER, tenant="bob")
    assert await queues.enqueue_sample(1, tenant="bob")
    with pytest.raises(ResourceExhaustedError, match=r"tenant bob already has 1 queued sampling requests \(limit 1\)"):
        await queues.enqueue_sample(2, tenant="bob")


async def test_what_closes_a_gap_is_let_in_for_those_that_wait_for_it(queues: Queues) -> None:
    queues = replace(queues, limits=replace(LIMITS, operations_of_tenant=2))
    await queues.enqueue(1)
    await queues.enqueue(2)
    with pytest.raises(ResourceExhaustedError):
        await queues.enqueue(3)
    assert await queues.enqueue(0)
    assert await queues.state(2) == operation_pb2.OPERATION_STATE_QUEUED


async def test_a_request_larger_than_all_that_may_wait_goes_alone(queues: Queues) -> None:
    queues = replace(queues, limits=replace(LIMITS, request_bytes_of_tenant=100))
    assert await queues.enqueue(0, size=1000)
    with pytest.raises(ResourceExhaustedError):
        await queues.enqueue(1)


async def test_however_an_operation_ends_it_counts_no_longer(queues: Queues) -> None:
    await queues.enqueue(0, size=70_000)
    await queues.enqueue(1)
    await queues.enqueue(2, refusal=InvalidArgumentError("no"))
    await queues.enqueue(3)
    for seq_id in (0, 1, 2):
        await queues.enqueue_sample(seq_id)
    counted = await load(queues, "alice")
    assert (counted["operations"], counted["samples"]) == (3, 3)
    assert counted["bytes"] > 70_000
    assert await load(queues) == counted

    lease = await queues.logs.claim("w1", RUN, "0-1", LEASE_MS)
    assert lease is not None
    for _ in range(2):
        await queues.finish(lease, 0)
    await queues.operations.cancel(OperationName(RUN, 1))
    await queues.logs.skip(lease, 1)
    await queues.logs.skip(lease, 2)
    for begins in (True, True, False):
        lease = await queues.logs.claim("w1", RUN, "0-1", LEASE_MS)
        assert lease is not None
        assert await queues.logs.begin(lease, 3) is begins
    await queues.operations.cancel(OperationName(SAMPLING, 0))
    finished, deadly = await queues.take(free=2)
    for _ in range(2):
        await queues.finish_sample(finished)
    assert [await queues.samples.begin(worker, deadly) for worker in ("s1", "s2", "s3")] == [True, True, False]
    nothing = {"operations": 0, "samples": 0, "bytes": 0}
    assert (await load(queues, "alice"), await load(queues)) == (nothing, nothing)


async def place(operations: OperationStore, name: str) -> tuple[int, bool] | None:
    operation = await operations.get_with_position(name, "alice")
    if not operation.HasField("queue_place"):
        return None
    return operation.queue_place.operations_ahead, operation.queue_place.HasField("estimated_wait")


async def test_a_waiting_operation_says_how_many_are_before_it_and_how_long(queues: Queues) -> None:
    for seq_id in (0, 1, 2, 3, 5):
        await queues.enqueue(seq_id)
    lease = await queues.logs.claim("w1", RUN, "0-1", LEASE_MS)
    assert lease is not None
    await queues.logs.begin(lease, 0)
    assert await place(queues.operations, f"{RUN}:0") is None, "it has begun"
    assert await place(queues.operations, f"{RUN}:3") == (3, False), "nothing is known of its pace"
    await queues.finish(lease, 0)
    await queues.finish(lease, 1)
    assert await place(queues.operations, f"{RUN}:3") == (1, True)
    assert await place(queues.operations, f"{RUN}:5") == (3, False), "it waits for its turn to come"
    await queues.connection.commands.hset(keyspace.run_meta(RUN), mapping={"busy": 6000, "ended": 3})
    waiting = await queues.operations.get_with_position(f"{RUN}:3", "alice")
    assert waiting.queue_place.estimated_wait.ToMilliseconds() == 2000
    assert await place(queues.operations, f"{RUN}:1") is None


async def test_a_sampling_operation_says_how_many_come_before_it_in_turn(queues: Queues) -> None:
    for seq_id in range(5):
        await queues.enqueue_sample(seq_id, tenant="mallory")
    await queues.enqueue_sample(10)
    await queues.enqueue_sample(11)
    assert await place(queues.operations, f"{SAMPLING}:11") == (3, False), "turns alternate"
    for _ in range(2):
        for entry in await queues.take(free=1):
            await queues.finish_sample(entry)
    assert await place(queues.operations, f"{SAMPLING}:11") == (1, True)
    await queues.take(free=9)
    assert await place(queues.operations, f"{SAMPLING}:11") is None, "a sampler has it"
    assert await queues.connection.commands.exists(keyspace.sample_shares(BASE)) == 0, "an empty queue forgets shares"
