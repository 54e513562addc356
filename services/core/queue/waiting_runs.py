"""Waiting runs of one base model: a stream with one entry a run, which stays with the trainer that holds the run.

An entry that its trainer has not renewed for the time of a lease can be taken by any trainer. The lease alone decides
which trainer holds a run; the stream only tells trainers which runs there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection
from services.core.queue.liveness import Liveness
from services.core.queue.retry import until_reached
from services.core.queue.run_log import Lease
from services.core.queue.streams import StreamEntry

_GROUP = keyspace.TRAINERS_GROUP


class WaitingRuns:
    """The waiting runs of one base model, as one trainer sees them."""

    def __init__(
        self, connection: RedisConnection, base_model: str, worker: str, lease_ms: int, *, aliases: Sequence[str] = ()
    ) -> None:
        self._connection = connection
        self._liveness = Liveness(connection, lease_ms / 1000)
        self._stream = keyspace.waiting_runs(base_model)
        self._aliases = [keyspace.waiting_runs(alias) for alias in aliases]
        self._worker = worker
        self._lease_ms = lease_ms

    async def open(self) -> None:
        """Creates the stream, and takes over what waits under aliases; retries until Redis answers."""
        await until_reached(lambda: streams.make_group(self._connection.commands, _GROUP, self._stream))
        await until_reached(self._adopt)

    async def watch_liveness(self) -> None:
        """Watches the link to the queue for ever; without a steady one, no run is taken from another trainer."""
        await self._liveness.watch()

    async def newest(self) -> str:
        """Id of the newest entry."""
        return await streams.last_id(self._connection.commands, self._stream)

    async def wait(self, position: str) -> None:
        """Waits up to a second for an entry after `position`."""
        await streams.read(self._connection.blocking, {self._stream: position}, count=1, block_ms=1000)

    async def take(self) -> StreamEntry | None:
        """Takes the entry of a run that no live trainer holds; None if there is none."""
        connection, found = self._connection, list[StreamEntry]()
        if self._liveness.is_steady:  # a retried command could come after the link broke, and `blocking` does not retry
            found = await streams.take_over(
                connection.blocking, _GROUP, self._worker, self._stream, idle_ms=self._lease_ms, count=1
            )
        found = found or await streams.read_group(connection.commands, _GROUP, self._worker, self._stream, count=1)
        return found[0] if found else None

    async def keep(self, leases: Sequence[Lease]) -> None:
        """Renews the entries of held runs, and takes over what waits under aliases; called every third of a lease."""
        await self._adopt()
        entries = [lease.waiting_entry for lease in leases]
        await streams.keep(self._connection.commands, _GROUP, self._worker, self._stream, entries)

    async def has_waiting(self) -> bool:
        """Whether there is a run that no live trainer holds."""
        return await streams.has_waiting(self._connection.commands, _GROUP, self._stream, idle_ms=self._lease_ms)

    async def _adopt(self) -> None:
        """Makes runs that wait under an alias, as those do that it was the first name of, wait here."""
        for alias in self._aliases:
            await self._connection.run("adopt_runs", [alias, self._stream], [])
