"""Times of the finished operations of a session: accepted, begun and ended, by the clock of Redis.

The event stream says which ended when; an operation's record has the rest, and is gone a day after the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from services.core.names import OperationName
from services.core.queue import keyspace, streams

_AT_ONCE = 2_000
_CLOCK_MARGIN = timedelta(minutes=1)


@dataclass(frozen=True)
class OperationTimes:
    """One finished operation; times in ms since the epoch."""

    name: OperationName
    method: str
    state: str
    accepted_ms: int
    begun_ms: int | None
    """Of the last attempt; None if it was refused or cancelled before it began."""

    ended_ms: int


async def times_of_session(commands: Any, session_id: str, opened: datetime) -> AsyncIterator[list[OperationTimes]]:
    """The finished operations of a session that was opened then, by their ends, some at a time.

    Args:
        commands: a client of the Redis server.
        session_id: the session.
        opened: when it was opened, by a gateway's clock.
    """
    position = f"{int((opened - _CLOCK_MARGIN).timestamp() * 1000)}-0"
    while entries := await streams.entries(commands, keyspace.EVENTS, after=position, count=_AT_ONCE):
        position = entries[-1].entry_id
        ended = {
            name: int(entry.entry_id.partition("-")[0])
            for entry in entries
            if (name := OperationName.parse(entry.fields[b"operation"].decode())).session_id == session_id
        }
        pipeline = commands.pipeline(transaction=False)
        for name in ended:
            pipeline.hmget(keyspace.operation(str(name)), "method", "state", "time", "begun")
        found = []
        for (name, ended_ms), record in zip(ended.items(), await pipeline.execute(), strict=True):
            method, state, accepted, begun = record
            if method is not None:
                begun_ms = None if begun is None else int(begun)
                times = OperationTimes(name, method.decode(), state.decode(), int(accepted), begun_ms, ended_ms)
                found.append(times)
        yield found
