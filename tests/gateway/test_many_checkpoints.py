"""Ten thousand checkpoints: a page costs a fixed number of commands, and reads no more than it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from services.core.catalog.checkpoints import StoredCheckpoint, checkpoint_writes
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tests.gateway.caller import BASE, Caller
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2

COUNT = 10_000
PAGE = 1000
AT_ONE_MOMENT = 7
INDEX_COMMANDS = 4
"""Of one page: how many entries there are, how many lie before it, which share the moment before it, and its own."""

T = TypeVar("T")


async def fill(connection: RedisConnection, run: str) -> list[str]:
    """Enters checkpoints as saves do, but in few commands, some at the same moment; their paths, newest first."""
    first = datetime(2026, 1, 31, tzinfo=UTC)
    entered: list[tuple[datetime, str]] = []
    indexes: defaultdict[Any, list[Any]] = defaultdict(list)
    pipeline = connection.commands.pipeline(transaction=False)
    for number in range(COUNT):
        path, when = TinkerPath(run, "weights", f"n{number}"), first + timedelta(milliseconds=number // AT_ONE_MOMENT)
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


async def commands_of(connection: RedisConnection, call: Callable[[], Awaitable[T]]) -> tuple[T, list[list[str]]]:
    """What a call returns, and the commands that the server carried out meanwhile, those of scripts included.

    A call of gRPC's is under way as soon as it is made, so it is made when the server's monitor has begun.
    """
    seen: list[list[str]] = []
    async with connection.commands.monitor() as monitor:
        result = await call()
        await connection.commands.echo("done")
        while (command := (await monitor.next_command())["command"]) != "ECHO done":
            seen.append(command.split())
    return result, seen


def entries_touched(commands: list[list[str]], index: str) -> int:
    """Entries of an index that its commands can have handed out."""
    touched = 0
    for name, _, *arguments in (command for command in commands if index in command[1:2]):
        match name.upper(), arguments:
            case "ZREVRANGE", [first, last, *_]:
                touched += (COUNT if int(last) < 0 else int(last) + 1) - int(first)
            case "ZREVRANGEBYSCORE", [most, least, *_]:
                assert most == least
                touched += AT_ONE_MOMENT
            case _:
                assert name.upper() in ("ZCARD", "ZCOUNT")
    return touched


async def test_pages_of_ten_thousand_are_complete_and_cost_what_they_show(
    alice: Caller, connection: RedisConnection
) -> None:
    expected = await fill(connection, await alice.run())
    index, found = keyspace.tenant_checkpoints("alice"), list[str]()
    request = checkpoint_pb2.ListCheckpointsRequest(page_size=PAGE)
    while not found or request.page_token:
        page, commands = await commands_of(connection, lambda: alice.checkpoints.ListCheckpoints(request))
        assert page.total_size == COUNT
        found += [item.tinker_path for item in page.checkpoints]
        request.page_token = page.next_page_token
        assert 0 < sum(index in command[1:2] for command in commands) <= INDEX_COMMANDS
        assert entries_touched(commands, index) <= PAGE + AT_ONE_MOMENT
        read = [command[1] for command in commands if command[0].upper() == "HGETALL"]
        assert len(read) == len(page.checkpoints), "no record is read that is not shown"
    assert found == expected
