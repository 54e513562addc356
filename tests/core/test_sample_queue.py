"""The sampling queue: any sampler, no order, one result."""

from __future__ import annotations

import asyncio

from services.core import keyspace
from services.core.names import OperationName
from services.core.sample_queue import SampleEntry
from tests.core.queue_parts import BASE, SAMPLING, Queues
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import operation_pb2, sampling_pb2


async def enqueue(queues: Queues, seq_id: int, location: str = "", num_samples: int = 1) -> bool:
    request = sampling_pb2.SampleRequest(sampling_session_id=SAMPLING, seq_id=seq_id, num_samples=num_samples)
    name = f"{SAMPLING}:{seq_id}"
    job = job_pb2.Job(operation=name, tenant="alice", sample=request, checkpoint_location=location)
    accepted = await queues.samples.enqueue(job, digest="d", method="Sample", base_model=BASE, max_waiting=100)
    return accepted is not None


async def take(queues: Queues, worker: str, count: int = 10) -> list[SampleEntry]:
    await queues.samples.join(BASE)
    return await queues.samples.take(worker, BASE, count=count, block_ms=50)


async def test_each_job_goes_to_one_sampler(queues: Queues) -> None:
    for seq_id in range(6):
        await enqueue(queues, seq_id)
    taken = [await take(queues, "s1", 2), await take(queues, "s2", 2), await take(queues, "s1", 2)]
    assert [len(entries) for entries in taken] == [2, 2, 2]
    names = {entry.operation for entries in taken for entry in entries}
    assert names == {f"{SAMPLING}:{seq_id}" for seq_id in range(6)}


async def test_a_resend_is_queued_once(queues: Queues) -> None:
    assert await enqueue(queues, 3)
    assert not await enqueue(queues, 3)
    assert len(await take(queues, "s1")) == 1


async def test_a_dead_samplers_jobs_go_to_another_and_only_the_first_result_counts(queues: Queues) -> None:
    await enqueue(queues, 0)
    (lost,) = await take(queues, "s1")
    assert await queues.samples.begin("s1", lost)

    async def taken_over() -> SampleEntry:
        while not (found := await queues.samples.take_over("s2", BASE, idle_ms=50, count=10)):
            await asyncio.sleep(0.01)
        return found[0]

    found = await asyncio.wait_for(taken_over(), 5)
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


async def test_a_sampler_that_says_it_is_at_work_keeps_its_jobs(queues: Queues) -> None:
    await enqueue(queues, 0)
    entries = await take(queues, "s1")
    for _ in range(20):
        await queues.samples.keep("s1", BASE, entries)
        assert await queues.samples.take_over("s2", BASE, idle_ms=1000, count=10) == []


async def test_a_running_job_can_be_cancelled_and_its_late_result_is_dropped(queues: Queues) -> None:
    await enqueue(queues, 0)
    (entry,) = await take(queues, "s1")
    assert await queues.samples.begin("s1", entry)
    assert await queues.operations.cancel(OperationName(SAMPLING, 0))
    late = await queues.operations.result(sampling_pb2.SampleResponse())
    await queues.samples.complete(BASE, entry, late)
    operation = await queues.operations.get(f"{SAMPLING}:0", "alice")
    assert operation.state == operation_pb2.OPERATION_STATE_CANCELLED
    assert not await queues.samples.begin("s1", entry)


async def test_samplers_hear_of_what_is_cancelled_while_it_runs_and_of_nothing_else(queues: Queues) -> None:
    position = await queues.operations.cancelled_position()
    for seq_id in range(3):
        await enqueue(queues, seq_id)
    entries = await take(queues, "s1")
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


async def test_a_job_that_kills_its_samplers_is_given_up_by_name(queues: Queues) -> None:
    await enqueue(queues, 0)
    (entry,) = await take(queues, "s1")
    assert [await queues.samples.begin("s1", entry) for _ in range(3)] == [True, True, False]
    operation = await queues.operations.get(f"{SAMPLING}:0", "alice")
    assert operation.error.reason == "WORKER_DIED"


async def waiting(queues: Queues, *workers: str, room: int = 4) -> dict[str, asyncio.Task[list[SampleEntry]]]:
    """Samplers that wait for work, the first for the longest."""
    await queues.samples.join(BASE)
    tasks = {}
    for worker in workers:
        take = queues.samples.take(worker, BASE, count=room, block_ms=2000)
        tasks[worker] = asyncio.create_task(take)
        while not await blocked(queues, len(tasks)):
            await asyncio.sleep(0.001)
    return tasks


async def blocked(queues: Queues, count: int) -> bool:
    return int((await queues.connection.commands.info("clients"))["blocked_clients"]) == count


async def hold(queues: Queues, worker: str, location: str, seq_id: int) -> None:
    """Lets a sampler begin a job with an adapter, and end it."""
    await enqueue(queues, seq_id, location)
    (entry,) = await take(queues, worker)
    assert await queues.samples.begin(worker, entry)
    await queues.samples.complete(BASE, entry, await queues.operations.result(sampling_pb2.SampleResponse()))


async def test_a_job_goes_to_the_waiting_sampler_that_has_its_adapter(queues: Queues) -> None:
    await hold(queues, "s2", "a", 0)
    await hold(queues, "s3", "b", 1)
    for seq_id, (location, expected) in enumerate([("a", "s2"), ("b", "s3"), ("", "s1"), ("new", "s1")], start=2):
        tasks = await waiting(queues, "s1", "s2", "s3")
        await enqueue(queues, seq_id, location)
        (entry,) = await tasks.pop(expected)
        assert (entry.operation, entry.location) == (f"{SAMPLING}:{seq_id}", location)
        await queues.samples.complete(BASE, entry, await queues.operations.result(sampling_pb2.SampleResponse()))
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert await queues.connection.commands.xlen(keyspace.sample_queue(BASE)) == 0
    assert await queues.connection.commands.xlen(keyspace.sampler_inbox("s2")) == 0


async def test_nobody_waits_for_the_sampler_that_has_the_adapter(queues: Queues) -> None:
    """It is at work, or it has been given as much as it has room for."""
    await hold(queues, "s2", "a", 0)
    tasks = await waiting(queues, "s1")
    await enqueue(queues, 1, "a")
    assert len(await tasks["s1"]) == 1
    await queues.connection.commands.set(keyspace.sampler_room("s2"), 3)
    for seq_id, num_samples in ((2, 2), (3, 9), (4, 1)):
        await enqueue(queues, seq_id, "a", num_samples)
    assert [entry.operation for entry in await take(queues, "s1")] == [f"{SAMPLING}:4"]
    assert [entry.operation for entry in await take(queues, "s2")] == [f"{SAMPLING}:2", f"{SAMPLING}:3"]


async def test_jobs_that_were_taken_for_a_dead_sampler_go_to_another(queues: Queues) -> None:
    await hold(queues, "s2", "a", 0)
    await queues.connection.commands.set(keyspace.sampler_room("s2"), 3)
    await enqueue(queues, 1, "a")
    assert await take(queues, "s1") == []

    async def taken_over() -> SampleEntry:
        while not (found := await queues.samples.take_over("s1", BASE, idle_ms=50, count=10)):
            await asyncio.sleep(0.01)
        return found[0]

    found = await asyncio.wait_for(taken_over(), 5)
    assert await queues.samples.begin("s1", found)


async def test_an_older_job_that_waits_is_not_overtaken(queues: Queues) -> None:
    await hold(queues, "s2", "a", 0)
    await enqueue(queues, 1)
    await queues.connection.commands.set(keyspace.sampler_room("s2"), 3)
    await enqueue(queues, 2, "a")
    assert [entry.operation for entry in await take(queues, "s1")] == [f"{SAMPLING}:2"]
    assert [entry.operation for entry in await take(queues, "s2")] == [f"{SAMPLING}:1"]
