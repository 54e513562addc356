"""What waits and who is there, as gauges: read from Redis when somebody asks for the metrics."""

from __future__ import annotations

import time

from services.core import keyspace
from services.core.connection import RedisConnection
from services.core.metrics import OLDEST_SAMPLE_SECONDS, RUNS_PLACED, SAMPLES_WAITING, SLOTS, SLOTS_USED, WORKERS
from services.core.workers import WorkerDirectory
from tinker_proto.internal.v1 import job_pb2

_KINDS = {job_pb2.WORKER_KIND_TRAINER: "trainer", job_pb2.WORKER_KIND_SAMPLER: "sampler"}


async def fill_gauges(connection: RedisConnection, workers: WorkerDirectory) -> None:
    """Sets every gauge to what is true now; what is gone is not shown any more."""
    live = await workers.live()
    for gauge in (SAMPLES_WAITING, OLDEST_SAMPLE_SECONDS, RUNS_PLACED, WORKERS, SLOTS, SLOTS_USED):
        gauge.clear()
    for status in live:
        labels = (status.base_model, _KINDS[status.kind])
        WORKERS.labels(*labels).inc()
        SLOTS.labels(*labels).inc(status.slots)
        SLOTS_USED.labels(*labels).inc(status.slots_used)
    for base_model in sorted({status.base_model for status in live}):
        pipeline = connection.commands.pipeline(transaction=False)
        pipeline.xlen(keyspace.sample_queue(base_model))
        pipeline.xrange(keyspace.sample_queue(base_model), count=1)
        pipeline.xlen(keyspace.place(base_model))
        waiting, oldest, placed = await pipeline.execute()
        SAMPLES_WAITING.labels(base_model).set(waiting)
        since_ms = int(oldest[0][0].partition(b"-")[0]) if oldest else time.time() * 1000
        OLDEST_SAMPLE_SECONDS.labels(base_model).set(max(0.0, time.time() - since_ms / 1000))
        RUNS_PLACED.labels(base_model).set(placed)
