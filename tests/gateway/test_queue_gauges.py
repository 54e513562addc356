"""What Prometheus is told about the queue is what waits in it."""

from __future__ import annotations

from prometheus_client import REGISTRY

from services.core.queue.connection import RedisConnection
from services.gateway.queue_gauges import fill_gauges
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, tokens
from tinker_proto.v1 import sampling_pb2


async def told(connection: RedisConnection, stores: Stores, name: str) -> float:
    await fill_gauges(connection, stores.workers)
    value = REGISTRY.get_sample_value(name, {"base_model": BASE})
    assert value is not None
    return value


async def test_what_waits_is_counted_and_its_wait_is_that_of_the_next(
    alice: Caller, stores: Stores, connection: RedisConnection
) -> None:
    assert await told(connection, stores, "tinker_samples_waiting") == 0
    assert await told(connection, stores, "tinker_next_sample_seconds") == 0
    assert await told(connection, stores, "tinker_runs_placed") == 0
    sampling = await alice.sampling_session()
    for seq_id in range(3):
        await alice.sampling.Sample(
            sampling_pb2.SampleRequest(sampling_session_id=sampling, seq_id=seq_id, prompt=tokens(5, 6))
        )
    assert await told(connection, stores, "tinker_head_seconds") == 0
    for _ in range(2):
        await alice.run()
    heads = [await told(connection, stores, "tinker_head_seconds") for _ in range(2)]
    assert 0 < heads[0] < heads[1] < 60
    assert await told(connection, stores, "tinker_samples_waiting") == 3
    assert await told(connection, stores, "tinker_runs_placed") == 2
    ages = [await told(connection, stores, "tinker_next_sample_seconds") for _ in range(2)]
    assert 0 < ages[0] < ages[1] < 60

    await stores.sample_queues.join(BASE)
    (entry,) = await stores.sample_queues.take("w", BASE, free=1, block_ms=1000)
    assert await told(connection, stores, "tinker_samples_waiting") == 3, "what is under way is counted too"
    await stores.sample_queues.complete(BASE, entry, await stores.operations.result(sampling_pb2.SampleResponse()))
    assert await told(connection, stores, "tinker_samples_waiting") == 2
