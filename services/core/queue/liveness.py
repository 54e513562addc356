"""Liveness of other workers, and who may judge it: only a worker whose own link to the queue has been steady.

After an outage of the queue all workers look silent, and the first to reconnect would take over the work of live ones.
A worker that has just started, or was stopped or cut off, therefore gives the others the time of a lease before it
takes over anything.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress

from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection


class Liveness:
    """One worker's link to the queue, and whether it is steady enough to judge others."""

    def __init__(self, connection: RedisConnection, lease_s: float) -> None:
        self._commands = connection.commands
        self._lease_s = lease_s
        self._longest_gap_s = lease_s / 2
        """A longer gap may have cost another worker its lease, and that worker needs time to reconnect."""

        self._server = ""
        self._since = self._last = -math.inf

    async def watch(self) -> None:
        """Probes the link for ever, six times a lease, so that a slow answer does not count as a gap."""
        while True:
            with suppress(*TRANSIENT_ERRORS):
                await self.probe()
            await asyncio.sleep(self._lease_s / 6)

    async def probe(self) -> None:
        """Waits until the server answers and records when it did, and which server it is."""
        await self._commands.ping()  # unlike `info`, it waits for a server that still reads its data
        server = (await self._commands.info("server"))["run_id"]
        now = time.monotonic()
        if server != self._server or now - self._last > self._longest_gap_s:
            self._since = now
        self._server, self._last = server, now

    @property
    def is_steady(self) -> bool:
        """Whether the link has lasted for a lease, to the same server and without a gap."""
        now = time.monotonic()
        return now - self._last <= self._longest_gap_s and now - self._since >= self._lease_s
