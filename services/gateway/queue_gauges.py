"""Gauges of queues, workers and sessions, read from Redis when the metrics are requested."""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.core.names import OperationName
from services.core.process.metrics import (
    HEAD_SECONDS,
    NEXT_SAMPLE_SECONDS,
    REQUEST_BYTES_WAITING,
    REQUESTS_WAITING,
    RUNS_PLACED,
    SAMPLES_WAITING,
    SESSIONS_OPEN,
    SLOTS,
    SLOTS_USED,
    WORKERS,
)
from services.core.process.workers import KIND_NAMES, WorkerDirectory
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection


async def fill_gauges(connection: RedisConnection, workers: WorkerDirectory) -> None:
    """Sets every gauge to its present value; a base model without workers is no longer shown."""
    live = await workers.live()
    for gauge in (SAMPLES_WAITING, NEXT_SAMPLE_SECONDS, HEAD_SECONDS, RUNS_PLACED, WORKERS, SLOTS, SLOTS_USED):
        gauge.clear()
    for status in live:
        labels = (status.base_model, KIND_NAMES[status.kind])
        WORKERS.labels(*labels).inc()
        SLOTS.labels(*labels).inc(status.slots)
        SLOTS_USED.labels(*labels).inc(status.slots_used)
    for base_model in sorted({status.base_model for status in live}):
        pipeline = connection.commands.pipeline(transaction=False)
        pipeline.zcard(keyspace.sample_waiting(base_model))
        pipeline.xlen(keyspace.sample_queue(base_model))
        pipeline.zrange(keyspace.sample_waiting(base_model), 0, 0)
        pipeline.xrange(keyspace.waiting_runs(base_model))
        waiting, taken, following, placed = await pipeline.execute()
        runs = [fields[b"run"].decode() for _, fields in placed]
        SAMPLES_WAITING.labels(base_model).set(waiting + taken)
        NEXT_SAMPLE_SECONDS.labels(base_model).set(await _oldest_s(connection, [name.decode() for name in following]))
        HEAD_SECONDS.labels(base_model).set(await _oldest_s(connection, await _heads(connection, runs)))
        RUNS_PLACED.labels(base_model).set(len(runs))
    operations, samples, request_bytes = await connection.commands.hmget(
        keyspace.LOAD, "operations", "samples", "bytes"
    )
    REQUESTS_WAITING.labels("training").set(int(operations or 0))
    REQUESTS_WAITING.labels("sampling").set(int(samples or 0))
    REQUEST_BYTES_WAITING.set(int(request_bytes or 0))
    SESSIONS_OPEN.set(await connection.commands.zcard(keyspace.OPEN_SESSIONS))


async def _heads(connection: RedisConnection, runs: Sequence[str]) -> list[str]:
    """The operations that come next in these runs, whether they are there or not."""
    pipeline = connection.commands.pipeline(transaction=False)
    for run in runs:
        pipeline.hget(keyspace.run_meta(run), "done_seq")
    done = await pipeline.execute()
    return [str(OperationName(run, int(seq_id or -1) + 1)) for run, seq_id in zip(runs, done, strict=True)]


async def _oldest_s(connection: RedisConnection, names: Sequence[str]) -> float:
    """Seconds since the oldest of these operations was accepted; 0 if there are none."""
    pipeline = connection.commands.pipeline(transaction=False)
    for name in names:
        pipeline.hget(keyspace.operation(name), "time")
    accepted_ms = [int(found) for found in await pipeline.execute() if found is not None]
    return max(0.0, time.time() - min(accepted_ms) / 1000) if accepted_ms else 0.0
