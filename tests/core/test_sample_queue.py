"""The sampling queue: any sampler, no order, one result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.core.catalog.api_keys import ApiKeys
from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.sample_queue import SampleEntry
from tests.core.queue_parts import BASE, SAMPLING, Queues
from tinker_proto.v1 import operation_pb2, sampling_pb2

HOUR_MS = 3_600_000


async def test_each_job_goes_to_one_sampler(queues: Queues) -> None:
    for seq_id in range(6):
        await queues.enqueue_sample(seq_id)
    taken = [await queues.take("s1", 2), await queues.take("s2", 2), await queues.take("s1", 2)]
    assert [len(entries) for entries in taken] == [2, 2, 2]
    names = {entry.operation for entries in taken for entry in entries}
    assert names == {f"{SAMPLING}:{seq_id}" for seq_id in range(6)}


async def test_a_resend_is_queued_once(queues: Queues) -> None:
    assert await queues.enqueue_sample(3)
    assert not await queues.enqueue_sample(3)
    assert len(await queues.take("s1")) == 1


async def test_a_dead_samplers_jobs_go_to_another_and_the_first_result_counts(queues: Queues) -> None:
    await queues.enqueue_sample(0)
    (lost,) = await queues.take("s1")
    assert await queues.samples.begin("s1", lost)

    (found,) = await queues.samples.take_over("s2", BASE, idle_ms=0, count=10)
    assert await queues.samples.begin("s2", found)
    first = await queues.operations.result(sampling_pb2.SampleResponse(prompt_logprobs=[1.0]))
    second = await queues.operations.result(sampling_pb2.SampleResponse(prompt_logprobs=[2.0]))
    await queues.samples.complete(BASE, found, first)
    await queues.samples.complete(BASE, lost, second)
    operation = await queues.operations.get(f"{SAMPLING}:0", "alice")
    response = sampling_pb2.SampleResponse()
    operation.response.Unpack(response)
    assert list(response.prompt_logprobs) == [1.0]
    assert await queues.connection.commands.xlen(keyspace.sample_queue(BASE)) == 0


async def fall_silent(queues: Queues, worker: str, entries: Sequence[SampleEntry]) -> None:
    """Makes a sampler's last sign of life an hour old."""
    stream, ids = keyspace.sample_queue(BASE), [entry.entry_id for entry in entries]
    await queues.connection.commands.xclaim(stream, keyspace.SAMPLERS_GROUP, worker, 0, ids, idle=HOUR_MS)


async def test_a_sampler_that_says_it_is_at_work_keeps_its_jobs(queues: Queues) -> None:
    await queues.enqueue_sample(0)
    entries = await queues.take("s1")
    await fall_silent(queues, "s1", entries)
    await queues.samples.keep("s1", BASE, entries)
    assert await queues.samples.take_over("s2", BASE, idle_ms=HOUR_MS, count=10) == []
    await fall_silent(queues, "s1", entries)
    assert await queues.samples.take_over("s2", BASE, idle_ms=HOUR_MS, count=10) == entries


async def test_a_running_job_can_be_cancelled_and_its_late_result_is_dropped(queues: Queues) -> None:
    await queues.enqueue_sample(0)
    (entry,) = await queues.take("s1")
    assert await queues.samples.begin("s1", entry)
    assert await queues.operations.cancel(OperationName(SAMPLING, 0))
    late = await queues.operations.result(sampling_pb2.SampleResponse())
    await queues.samples.complete(BASE, entry, late)
    operation = await queues.operations.get(f"{SAMPLING}:0", "alice")
    assert operation.state == operation_pb2.OPERATION_STATE_CANCELLED
    assert not await queues.samples.begin("s1", entry)


async def test_samplers_read_of_what_is_cancelled_while_running_and_no_more(queues: Queues) -> None:
    position = await queues.operations.cancelled_position()
    for seq_id in range(3):
        await queues.enqueue_sample(seq_id)
    entries = await queues.take("s1")
    await queues.samples.begin("s1", entries[1])
    await queues.samples.begin("s1", entries[2])
    await queues.samples.complete(BASE, entries[2], await queues.operations.result(sampling_pb2.SampleResponse()))
    assert [await queues.operations.cancel(OperationName(SAMPLING, seq_id)) for seq_id in range(3)] == [
        True,
        True,
        False,
    ]
    later, names = await queues.operations.cancelled_after(position)
    assert names == [f"{SAMPLING}:1"], "the first had not begun, the last was done"
    assert await queues.operations.cancelled_position() == later


async def test_a_job_that_kills_its_samplers_fails_by_name(queues: Queues) -> None:
    await queues.enqueue_sample(0)
    (entry,) = await queues.take("s1")
    workers = ["s1", "s1", "s2", "s2", "s3"]  # a call is repeated when its reply is lost
    assert [await queues.samples.begin(worker, entry) for worker in workers] == [True, True, True, True, False]
    operation = await queues.operations.get(f"{SAMPLING}:0", "alice")
    assert operation.error.reason == "WORKER_DIED"


async def test_a_job_of_a_tenant_whose_last_key_is_revoked_never_begins(queues: Queues) -> None:
    keys = ApiKeys(queues.connection)
    _, key = await keys.create("alice")
    await queues.enqueue_sample(0)
    (entry,) = await queues.take("s1")
    await keys.revoke(key.key_id)
    assert not await queues.samples.begin("s1", entry)
    operation = await queues.operations.get(f"{SAMPLING}:0", "alice")
    assert operation.error.reason == "KEY_REVOKED"
    await keys.create("alice")
    await queues.enqueue_sample(1)
    (entry,) = await queues.take("s1")
    assert await queues.samples.begin("s1", entry)


async def wait(queues: Queues, worker: str, free: int = 4) -> asyncio.Task[list[SampleEntry]]:
    """A sampler that waits for work, and takes what is there when it is woken."""
    await queues.samples.join(BASE)
    before = await blocked(queues)

    async def take() -> list[SampleEntry]:
        while not (taken := await queues.samples.take(worker, BASE, free=free, block_ms=2000)):
            pass
        return taken

    task = asyncio.create_task(take())
    while await blocked(queues) == before:
        await asyncio.sleep(0.001)
    return task


async def blocked(queues: Queues) -> int:
    return int((await queues.connection.commands.info("clients"))["blocked_clients"])


async def hold(queues: Queues, worker: str, location: str, seq_id: int) -> None:
    """Lets a sampler begin a job with an adapter, and end it."""
    await queues.enqueue_sample(seq_id, location=location)
    (entry,) = await queues.take(worker)
    assert await queues.samples.begin(worker, entry)
    await queues.finish_sample(entry)


@pytest.mark.parametrize("user", ["s1", "s2", "s3"])
async def test_a_job_goes_to_the_waiting_sampler_that_has_its_adapter(queues: Queues, user: str) -> None:
    await hold(queues, user, "a", 0)
    tasks = {worker: await wait(queues, worker) for worker in ("s1", "s2", "s3")}
    await queues.enqueue_sample(1, location="a")
    (entry,) = await tasks.pop(user)
    assert (entry.operation, entry.location) == (f"{SAMPLING}:1", "a")
    assert not any(task.done() for task in tasks.values())
    await queues.enqueue_sample(2)
    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    assert [task.done() for task in tasks.values()].count(True) == 1, "one that has no preference goes to anybody"
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_nobody_waits_for_a_sampler_that_is_busy(queues: Queues) -> None:
    await hold(queues, "s2", "a", 0)
    await queues.enqueue_sample(1, location="a")
    assert len(await queues.take("s1")) == 1


async def test_what_the_adapters_last_user_has_no_free_slots_for_goes_to_others(queues: Queues) -> None:
    await hold(queues, "s2", "a", 0)
    user = await wait(queues, "s2", free=2)
    other = await wait(queues, "s1")
    for seq_id in (1, 2, 3):
        await queues.enqueue_sample(seq_id, location="a", num_samples=2)
    taken = await asyncio.gather(user, other)
    assert [entry.operation for entry in taken[0]] == [f"{SAMPLING}:1"]
    assert taken[1][0].operation == f"{SAMPLING}:2"


async def test_a_job_that_is_left_to_a_dead_sampler_goes_to_another(queues: Queues) -> None:
    await hold(queues, "s2", "a", 0)
    await queues.connection.commands.set(keyspace.sampler_free("s2"), 3)
    await queues.enqueue_sample(1, location="a")
    assert await queues.take("s1") == []
    await queues.connection.commands.pexpire(keyspace.sampler_free("s2"), 0)
    assert len(await queues.take("s1")) == 1


async def test_a_sampler_takes_no_more_than_its_free_slots(queues: Queues) -> None:
    for seq_id in range(4):
        await queues.enqueue_sample(seq_id, num_samples=3)
    assert len(await queues.take("s1", 4)) == 2, "one more at most than fits"
    assert await queues.take("s1", 0) == []
    assert len(await queues.take("s2", 100)) == 2


async def test_a_full_sampler_takes_the_next_job_of_tenants_that_wait_for_nothing(queues: Queues) -> None:
    for seq_id, tenant in enumerate(["mallory"] * 5 + ["alice", "alice", "bob"]):
        await queues.enqueue_sample(seq_id, tenant=tenant)

    async def take(*waiting: str, most: int = 9) -> list[str]:
        taken = await queues.samples.take_newcomers("s1", BASE, waiting_tenants=waiting, most=most)
        return [entry.operation.rpartition(":")[2] for entry in taken]

    await queues.samples.join(BASE)
    assert sorted(await take("mallory")) == ["5", "7"], "one of each"
    assert await take("mallory", "alice") == []
    assert await take(most=0) == []
    assert sorted(await take()) == ["0", "6"]
    await queues.connection.commands.set(keyspace.sample_vacancy(BASE), "s2")
    assert await take() == [], "it is left to a sampler that has free slots"
    assert len(await queues.take("s2", 1)) == 1
    assert len(await take()) == 1, "which has none any more"


async def test_a_flood_does_not_delay_another_tenant(queues: Queues) -> None:
    for seq_id in range(100):
        await queues.enqueue_sample(seq_id, tenant="mallory")
    taken = await queues.take("s1", 10)
    await queues.enqueue_sample(100, tenant="alice")
    await queues.enqueue_sample(101, tenant="alice")
    taken = await queues.take("s1", 4)
    names = [entry.operation for entry in taken]
    assert {f"{SAMPLING}:100", f"{SAMPLING}:101"} <= set(names), "turns alternate"


async def test_tenants_share_by_what_their_requests_may_cost(queues: Queues) -> None:
    for seq_id in range(60):
        await queues.enqueue_sample(seq_id, tenant="large", cost=30)
        await queues.enqueue_sample(1000 + seq_id, tenant="small", cost=10)
    taken = [entry.operation for entry in await queues.take("s1", 40)]
    large = sum(int(name.rpartition(":")[2]) < 1000 for name in taken)
    assert abs(large - 10) <= 1, "three of the small ones for each of the large ones"


async def test_who_comes_back_after_a_pause_has_saved_nothing_up(queues: Queues) -> None:
    await queues.enqueue_sample(0, tenant="bob")
    for seq_id in range(1, 101):
        await queues.enqueue_sample(seq_id, tenant="alice")
    await queues.take("s1", 80)
    for seq_id in range(200, 220):
        await queues.enqueue_sample(seq_id, tenant="bob")
    taken = [int(entry.operation.rpartition(":")[2]) for entry in await queues.take("s1", 20)]
    assert abs(sum(seq_id >= 200 for seq_id in taken) - 10) <= 1


async def test_one_tenants_requests_keep_their_order(queues: Queues) -> None:
    for seq_id in range(20):
        await queues.enqueue_sample(seq_id, cost=1 + seq_id % 3)
    assert [entry.operation for entry in await queues.take("s1", 20)] == [f"{SAMPLING}:{n}" for n in range(20)]


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing(queues: Queues, data_dir: Path) -> None:
    await queues.enqueue_sample(0, size=100_000)
    assert files(data_dir)
    assert await queues.operations.cancel(OperationName(SAMPLING, 0))
    assert await queues.connection.commands.exists(keyspace.sample_waiting(BASE), keyspace.sample_jobs(BASE)) == 0
    assert not files(data_dir)


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_what_was_asked_for_under_an_alias_is_done_under_the_first_name(queues: Queues) -> None:
    for seq_id in range(4):
        await queues.enqueue_sample(seq_id)
    (taken,) = await queues.take("dead", 1)
    assert await queues.samples.begin("dead", taken)
    await queues.samples.join("first")
    await queues.samples.adopt("first", [BASE])
    await queues.samples.adopt("first", [BASE])
    assert await queues.operations.cancel(OperationName(SAMPLING, 3))
    adopted = await queues.samples.take("s1", "first", free=10, block_ms=1)
    assert sorted(entry.operation for entry in adopted) == [f"{SAMPLING}:{seq_id}" for seq_id in range(3)]
    for entry in adopted:
        assert (await queues.samples.read_job(entry)).operation == entry.operation
        assert await queues.samples.begin("s1", entry)
        await queues.samples.complete("first", entry, await queues.operations.result(sampling_pb2.SampleResponse()))
        assert (await queues.operations.get(entry.operation, "alice")).done
    left = [key.decode() async for key in queues.connection.commands.scan_iter("*sample*")]
    assert [key for key in left if key.endswith(f":{BASE}")] == [keyspace.sample_wake(BASE)]
