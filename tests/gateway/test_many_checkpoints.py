"""Ten thousand checkpoints: every page is there at once, and reads no more than it shows."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from services.core.catalog.checkpoints import StoredCheckpoint, checkpoint_writes
from services.core.queue.connection import RedisConnection
from tests.gateway.caller import BASE, Caller
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2

COUNT = 10_000
PAGE = 1000


async def fill(connection: RedisConnection, run: str) -> list[str]:
    """Enters checkpoints as saves do, but in few commands, some at the same moment; their paths, newest first."""
    first = datetime(2026, 1, 31, tzinfo=UTC)
    entered: list[tuple[datetime, str]] = []
    indexes: defaultdict[Any, list[Any]] = defaultdict(list)
    pipeline = connection.commands.pipeline(transaction=False)
    for number in range(COUNT):
        path, when = TinkerPath(run, "weights", f"n{number}"), first + timedelta(milliseconds=number // 7)
        record = checkpoint_pb2.Checkpoint(
            checkpoint_id=path.checkpoint_id,
            checkpoint_type=checkpoint_pb2.CHECKPOINT_TYPE_TRAINING,
            tinker_path=str(path),
            training_run_id=run,
            base_model=BASE,
        )
        record.time.FromDatetime(when)
        stored = StoredCheckpoint(record, f"{run}/weights/{number}")
        for command, key, *values in checkpoint_writes("alice", stored, ""):
            if command == "ZADD":
                indexes[key] += values
            elif command == "HSET":
                pipeline.execute_command(command, key, *values)
        entered.append((when, str(path)))
    for key, values in indexes.items():
        pipeline.execute_command("ZADD", key, *values)
    await pipeline.execute()
    return [path for _, path in sorted(entered, reverse=True)]


async def records_read(connection: RedisConnection) -> int:
    """Checkpoint records that the server has handed out so far."""
    statistics = await connection.commands.info("commandstats")
    return int(statistics.get("cmdstat_hgetall", {"calls": 0})["calls"])


async def test_pages_of_ten_thousand_are_complete_in_order_and_at_once(
    alice: Caller, connection: RedisConnection
) -> None:
    expected = await fill(connection, await alice.run())
    before, found, slowest = await records_read(connection), list[str](), 0.0
    request = checkpoint_pb2.ListCheckpointsRequest(page_size=PAGE)
    while not found or request.page_token:
        began = time.monotonic()
        page = await alice.checkpoints.ListCheckpoints(request)
        slowest = max(slowest, time.monotonic() - began)
        assert page.total_size == COUNT
        found += [item.tinker_path for item in page.checkpoints]
        request.page_token = page.next_page_token
    assert found == expected
    assert await records_read(connection) - before == COUNT, "no record is read that is not shown"
    assert slowest < 1.0, "a person does not notice a pause"
