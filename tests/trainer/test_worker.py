"""Many tenants on one trainer, over a real queue: shared passes, order, fairness, and whose fault a failure is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.rpc import code_pb2

from services.core.queue.connection import RedisConnection
from services.model.base import BaseModel
from testing.served_trainer import serving
from testing.tiny_models import VOCAB_SIZE
from testing.training_data import datum
from testing.training_queue import Queue, loss_of, open_queue
from testing.waiting import until
from testing.watched_engine import WatchedEngine
from tests.trainer.memory import small_memory

RUNS = {f"s{i}:train:0": f"tenant-{i}" for i in range(5)}


@pytest.fixture
def watched(load: Callable[..., BaseModel]) -> WatchedEngine:
    return WatchedEngine(load(), row_tokens=64)


@pytest.fixture
def queue(connection: RedisConnection, watched: WatchedEngine, data_dir: Path) -> Queue:
    return open_queue(connection, watched.base, data_dir)


async def test_runs_of_many_tenants_share_passes_and_learn_as_each_would_alone(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path
) -> None:
    losses: dict[str, list[str]] = {run: [] for run in RUNS}
    for run, tenant in RUNS.items():
        await queue.create(run, tenant)
        for _ in range(4):
            losses[run].append(await queue.forward_backward(run, tenant))
            last = await queue.optim_step(run, tenant)
    async with serving(connection, watched, queue, data_dir):
        for tenant in RUNS.values():
            await queue.result(last.replace(last.partition(":")[0], f"s{tenant[-1]}"), tenant)
        found = [[loss_of(await queue.result(name, RUNS[run])) for name in names] for run, names in losses.items()]
    assert all(alike == pytest.approx(found[0], rel=1e-5) for alike in found), "same seed and data, same losses"
    assert found[0][-1] < found[0][0]
    assert len(watched.passes) < 12, "20 passes of 5 runs share cycles"
    assert max(map(len, watched.passes)) >= 3


async def test_consecutive_passes_of_one_run_share_a_cycle_and_report_in_order(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path
) -> None:
    run = "s0:train:0"
    await queue.create(run, "t")
    names = [await queue.forward_backward(run, "t", (5,)) for _ in range(8)]
    async with serving(connection, watched, queue, data_dir):
        results = [await queue.result(name, "t") for name in names]
        assert len({loss_of(result) for result in results}) <= 2, "one gradient accumulates, the weights stand still"
        assert await queue.logs.done_seq_id(run) == 8
    assert len(watched.passes) <= 3


async def test_a_flood_delays_a_light_tenant_by_at_most_two_cycles(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path
) -> None:
    flood, light = "s0:train:0", "s1:train:0"
    await queue.create(flood, "heavy")
    await queue.create(light, "light")
    names = [await queue.forward_backward(flood, "heavy", (60, 60, 60)) for _ in range(100)]
    async with serving(connection, watched, queue, data_dir):
        await queue.result(f"{light}:0", "light")
        for step in range(3):
            await until(lambda: len(watched.passes) > 5 * step + 3)  # noqa: B023
            before = len(watched.passes)
            await queue.result(await queue.forward_backward(light, "light"), "light")
            passes = [index for index, runs in enumerate(watched.passes) if light in runs]
            assert passes[-1] - before <= 2
        assert len(watched.passes) < 60, "the flood was still there"
        assert not (await queue.operations.get(names[-1], "heavy")).done


async def test_a_job_that_breaks_the_pass_fails_alone(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path
) -> None:
    for run, tenant in RUNS.items():
        await queue.create(run, tenant)
    bad_run = "s2:train:0"
    bad_data = [datum([5, VOCAB_SIZE + 3], [6, 7])]
    names = {
        run: await queue.forward_backward(run, tenant, data=bad_data if run == bad_run else ())
        for run, tenant in RUNS.items()
    }
    after = await queue.forward_backward(bad_run, RUNS[bad_run])
    async with serving(connection, watched, queue, data_dir):
        results = {run: await queue.result(name, RUNS[run]) for run, name in names.items()}
        assert results[bad_run].error.reason == "OPERATION_FAILED"
        alone = [loss_of(result) for run, result in results.items() if run != bad_run]
        assert alone == [alone[0]] * 4
        assert loss_of(await queue.result(after, RUNS[bad_run])) == pytest.approx(alone[0], rel=1e-5), "the run goes on"


async def test_a_job_that_does_not_fit_the_memory_fails_alone_by_name(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path
) -> None:
    for run, tenant in RUNS.items():
        await queue.create(run, tenant)
    large_run = "s2:train:0"
    names = {
        run: await queue.forward_backward(run, tenant, (40,) if run == large_run else (6, 4))
        for run, tenant in RUNS.items()
    }
    after = await queue.forward_backward(large_run, RUNS[large_run])
    with small_memory(watched, 30):
        async with serving(connection, watched, queue, data_dir):
            results = {run: await queue.result(name, RUNS[run]) for run, name in names.items()}
            assert results[large_run].error.code == code_pb2.RESOURCE_EXHAUSTED
            assert results[large_run].error.reason == "OUT_OF_MEMORY"
            others = [loss_of(result) for run, result in results.items() if run != large_run]
            assert others == pytest.approx([others[0]] * 4, rel=1e-5)
            assert loss_of(await queue.result(after, RUNS[large_run])) == pytest.approx(others[0], rel=1e-5)


@pytest.mark.parametrize(("damage", "reason"), [("gone", "BLOB_MISSING"), ("altered", "BLOB_DAMAGED")])
async def test_a_job_whose_blob_is_lost_fails_by_name_and_the_run_goes_on(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path, damage: str, reason: str
) -> None:
    run = "s0:train:0"
    await queue.create(run, "t")
    lost = await queue.forward_backward(run, "t", (60,) * 120)
    (blob,) = [path for path in (data_dir / "blobs" / "jobs").rglob("*") if path.is_file()]
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    after = await queue.forward_backward(run, "t")
    async with serving(connection, watched, queue, data_dir):
        assert (await queue.result(lost, "t")).error.reason == reason
        loss_of(await queue.result(after, "t"))


async def test_operations_of_a_shared_pass_that_killed_a_worker_run_alone(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path
) -> None:
    names = {}
    for run, tenant in RUNS.items():
        await queue.create(run, tenant)
        names[run] = await queue.forward_backward(run, tenant)
        lease = await queue.logs.claim("dead", run, "0-1", 1)
        assert lease is not None
        await queue.logs.begin_together(lease, 1)
    async with serving(connection, watched, queue, data_dir):
        for run, name in names.items():
            loss_of(await queue.result(name, RUNS[run]))
    assert sorted(watched.passes) == sorted([run] for run in RUNS)


async def test_a_new_holder_rebuilds_a_run_and_goes_on_where_it_was(
    connection: RedisConnection, watched: WatchedEngine, queue: Queue, data_dir: Path
) -> None:
    run = "s0:train:0"
    await queue.create(run, "t")

    async def steps(count: int) -> list[float]:
        names = []
        for _ in range(count):
            names.append(await queue.forward_backward(run, "t"))
            await queue.optim_step(run, "t")
        return [loss_of(await queue.result(name, "t")) for name in names]

    async with serving(connection, watched, queue, data_dir, name="first"):
        first = await steps(3)
    async with serving(connection, watched, queue, data_dir, name="second"):
        second = await steps(3)
    assert second[0] < first[-1], "the second worker continues"
    reference = "s1:train:0"
    run = reference
    await queue.create(run, "t")
    async with serving(connection, watched, queue, data_dir, name="third"):
        assert await steps(6) == first + second
