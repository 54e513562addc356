"""What waits and who is there, as gauges: read from Redis when somebody asks for the metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.core import keyspace
from services.core.connection import RedisConnection
from services.core.metrics import (
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
from services.core.workers import WorkerDirectory
from tinker_proto.internal.v1 import job_pb2

_KINDS = {job_pb2.WORKER_KIND_TRAINER: "trainer", job_pb2.WORKER_KIND_SAMPLER: "sampler"}


async def fill_gauges(connection: RedisConnection, workers: WorkerDirectory) -> None:
    """Sets every gauge to what is true now; what is gone is not shown any more."""
    live = await workers.live()
    for gauge in (SAMPLES_WAITING, NEXT_SAMPLE_SECONDS, RUNS_PLACED, WORKERS, SLOTS, SLOTS_USED):
        gauge.clear()
    for status in live:
        labels = (status.base_model, _KINDS[status.kind])
        WORKERS.labels(*labels).inc()
        SLOTS.labels(*labels).inc(status.slots)
        SLOTS_USED.labels(*labels).inc(status.slots_used)
    for base_model in sorted({status.base_model for status in live}):
        pipeline = connection.commands.pipeline(transaction=False)
        pipeline.zcard(keyspace.sample_waiting(base_model))
        pipeline.xlen(keyspace.sample_queue(base_model))
        pipeline.zrange(keyspace.sample_waiting(base_model), 0, 0)
        pipeline.xlen(keyspace.place(base_model))
        waiting, taken, following, placed = await pipeline.execute()
        SAMPLES_WAITING.labels(base_model).set(waiting + taken)
        NEXT_SAMPLE_SECONDS.labels(base_model).set(await _age(connection, following))
        RUNS_PLACED.labels(base_model).set(placed)
    operations, samples, request_bytes = await connection.commands.hmget(
        keyspace.LOAD, "operations", "samples", "bytes"
    )
    REQUESTS_WAITING.labels("training").set(int(operations or 0))
    REQUESTS_WAITING.labels("sampling").set(int(samples or 0))
    REQUEST_BYTES_WAITING.set(int(request_bytes or 0))
    SESSIONS_OPEN.set(await connection.commands.zcard(keyspace.OPEN_SESSIONS))


async def _age(connection: RedisConnection, names: Sequence[bytes]) -> float:
    """Seconds since the first of these operations was accepted; 0 if there is none."""
    accepted_ms = await connection.commands.hget(keyspace.operation(names[0].decode()), "time") if names else None
    return max(0.0, time.time() - int(accepted_ms) / 1000) if accepted_ms else 0.0
