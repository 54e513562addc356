"""Runs of one base model that want a trainer: a stream whose entries stay with the trainer that has the run.

An entry that its trainer has not touched for the time of a lease is anybody's again. Who has a run is decided by the
lease alone; this is how trainers hear of runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection
from services.core.queue.liveness import Contact
from services.core.queue.retry import until_reached
from services.core.queue.run_log import Lease
from services.core.queue.streams import StreamEntry

_GROUP = keyspace.TRAINERS_GROUP


class Places:
    """The runs of one base model, as one worker sees them."""

    def __init__(self, connection: RedisConnection, base_model: str, worker: str, lease_ms: int) -> None:
        self._connection = connection
        self._contact = Contact(connection, lease_ms / 1000)
        self._stream = keyspace.place(base_model)
        self._worker = worker
        self._lease_ms = lease_ms

    async def open(self) -> None:
        """Makes the stream, however long that takes."""
        await until_reached(lambda: streams.make_group(self._connection.commands, _GROUP, self._stream))

    async def keep_contact(self) -> None:
        """Stays in touch with the queue for ever: without that, nothing is taken from others."""
        await self._contact.keep()

    async def newest(self) -> str:
        """Where the stream is now."""
        return await streams.last_id(self._connection.commands, self._stream)

    async def wait(self, position: str) -> None:
        """Waits for a run that comes behind a position, a second at most."""
        await streams.read(self._connection.blocking, {self._stream: position}, count=1, block_ms=1000)

    async def take(self) -> StreamEntry | None:
        """Takes the entry of a run that no living trainer has; None if there is none."""
        connection, found = self._connection, list[StreamEntry]()
        if self._contact.is_steady:  # it may not be any more when a command is sent again
            found = await streams.take_over(
                connection.blocking, _GROUP, self._worker, self._stream, idle_ms=self._lease_ms, count=1
            )
        found = found or await streams.read_group(connection.commands, _GROUP, self._worker, self._stream, count=1)
        return found[0] if found else None

    async def keep(self, leases: Sequence[Lease]) -> None:
        """Says that these runs are still here; called every third of a lease."""
        entries = [lease.place_entry for lease in leases]
        await streams.keep(self._connection.commands, _GROUP, self._worker, self._stream, entries)

    async def has_waiting(self) -> bool:
        """Whether there is a run that no living trainer has."""
        return await streams.has_waiting(self._connection.commands, _GROUP, self._stream, idle_ms=self._lease_ms)
