"""The number of sequences that an engine could still start, and a wait until there is one."""

from __future__ import annotations

import asyncio


class FreeSlots:
    """Free slots of one engine, as last reported by it; none before the first report."""

    def __init__(self) -> None:
        self._count = 0
        self._are_some = asyncio.Event()

    @property
    def count(self) -> int:
        """Free slots."""
        return self._count

    def update(self, count: int) -> None:
        """Takes a report."""
        self._count = count
        if count:
            self._are_some.set()

    async def some(self) -> int:
        """Waits until there are free slots; returns how many."""
        while self._count == 0:  # they may be taken again between a report and this task's turn
            self._are_some.clear()
            await self._are_some.wait()
        return self._count
