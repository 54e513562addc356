"""Whether a worker's silence means anything: only somebody who has been in touch with the queue all the time can tell.

After the queue was away, all workers look silent, and whoever comes back first would take the work of living ones. So
who has been cut off, or stopped, or has only just begun, gives the others the time of a lease before it takes anything
over.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress

from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection


class Contact:
    """One worker's contact with the queue."""

    def __init__(self, connection: RedisConnection, lease_s: float) -> None:
        self._commands = connection.commands
        self._lease_s = lease_s
        self._longest_gap_s = lease_s / 2
        """One that is longer may have cost another worker, which needs its time to connect again, its lease."""

        self._server = ""
        self._since = self._last = -math.inf

    async def keep(self) -> None:
        """Makes contact for ever, so often that a queue which is slow to answer does not make a gap."""
        while True:
            with suppress(*TRANSIENT_ERRORS):
                await self.make()
            await asyncio.sleep(self._lease_s / 6)

    async def make(self) -> None:
        """Asks which server is there, once it answers, and notes that it was."""
        await self._commands.ping()  # unlike `info`, it waits for a server that still reads its data
        server = (await self._commands.info("server"))["run_id"]
        now = time.monotonic()
        if server != self._server or now - self._last > self._longest_gap_s:
            self._since = now
        self._server, self._last = server, now

    @property
    def is_steady(self) -> bool:
        """Whether it has lasted for a lease, with the same server and without a gap."""
        now = time.monotonic()
        return now - self._last <= self._longest_gap_s and now - self._since >= self._lease_s
