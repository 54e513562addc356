"""Whether a worker's silence means anything: only somebody who has been in touch with the queue all the time can tell.

After the queue was away, all workers look silent, and whoever comes back first would take the work of living ones. So
who has been cut off, or stopped, and who finds a queue that has only just started, gives the others the time of a
lease before it takes anything over.
"""

from __future__ import annotations

import math
import time

from services.core.connection import RedisConnection


class Contact:
    """One worker's contact with the queue; made every third of a lease, as leases are."""

    def __init__(self, connection: RedisConnection, lease_s: float) -> None:
        self._commands = connection.commands
        self._lease_s = lease_s
        self._longest_gap_s = lease_s / 2
        """One that is longer may have cost another worker, which needs its time to connect again, its lease."""

        self._since = self._last = -math.inf

    async def make(self) -> None:
        """Asks since when the queue is there, and notes that it is. The first time, what it says is believed."""
        uptime_s = (await self._commands.info("server"))["uptime_in_seconds"]
        now = time.monotonic()
        if math.isfinite(self._last) and now - self._last > self._longest_gap_s:
            self._since = now
        self._since = max(self._since, now - uptime_s)
        self._last = now

    @property
    def is_steady(self) -> bool:
        """Whether it has lasted for a lease without a gap."""
        has_gap = time.monotonic() - self._last > self._longest_gap_s
        return not has_gap and self._last - self._since >= self._lease_s
