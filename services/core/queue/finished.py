"""Finished operations after a cursor, for clients that poll instead of watching a stream.

A cursor is an entry of the event stream as one integer, valid on every gateway. The stream is capped: a cursor older
than its first entry is refused, because the operations that finished in between are unknown.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from services.core.errors import InvalidArgumentError
from services.core.names import OperationName
from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection
from services.core.queue.operation_times import OperationTimes, times_of_session

CLONE_SEQ_IDS = 1_000_000_000
"""Each copy of a sampling client numbers its requests from its own multiple of this."""

_SEQUENCE_BITS = 20
_AT_ONCE = 5_000
_CLOCK_MARGIN = timedelta(minutes=1)


class FinishedOperations:
    """Finished operations of sampling sessions, oldest first."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def after(
        self, cursor: int, sampling_session_id: str, clone: int, opened: datetime
    ) -> tuple[list[OperationName], int]:
        """The operations of one client of a sampling session that finished after `cursor`, and the next cursor.

        Cursor 0 begins where the sampling session was opened.

        Raises:
            InvalidArgumentError: the event stream no longer goes back as far as the cursor.
        """
        began = opened - _CLOCK_MARGIN  # the time is from the gateway's clock, the events' ids from Redis's
        position = _position(cursor) if cursor else f"{int(began.timestamp() * 1000)}-0"
        if cursor:
            await self._check_reach(position)
        finished = []
        while True:
            entries = await streams.entries(self._commands, keyspace.EVENTS, after=position, count=_AT_ONCE)
            for entry in entries:
                name = OperationName.parse(entry.fields[b"operation"].decode())
                if name.scope == sampling_session_id and name.seq_id // CLONE_SEQ_IDS == clone:
                    finished.append(name)
            if entries:
                position = entries[-1].entry_id
            if finished or len(entries) < _AT_ONCE:
                return finished, _cursor(position)

    def times(self, session_id: str, opened: datetime) -> AsyncIterator[list[OperationTimes]]:
        """Times of a session's finished operations; see `times_of_session`."""
        return times_of_session(self._commands, session_id, opened)

    async def _check_reach(self, position: str) -> None:
        oldest = await self._commands.xrange(keyspace.EVENTS, count=1)
        length = await self._commands.xlen(keyspace.EVENTS)
        if length >= keyspace.EVENTS_KEPT and _cursor(oldest[0][0].decode()) > _cursor(position):
            rule = "newer than the oldest event that is kept; retrieve the results one by one"
            raise InvalidArgumentError.must_be("prev_cursor", rule, reason="CURSOR_EXPIRED")


def _cursor(position: str) -> int:
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds) << _SEQUENCE_BITS | int(sequence)


def _position(cursor: int) -> str:
    return f"{cursor >> _SEQUENCE_BITS}-{cursor & ((1 << _SEQUENCE_BITS) - 1)}"
