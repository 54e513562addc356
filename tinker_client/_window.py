"""Bounds what one owner has on the wire at once, first come, first served.

The bound is on requests whose answer is outstanding, and on their bytes; a request that is larger than all allowed
bytes goes alone. A request that is told to come back later keeps its place, which is what slows its owner down. Lives
on the background loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_REQUESTS = 64
MAX_BYTES = 32 << 20


class Window:
    """At most `max_requests` requests of at most `max_bytes` in all."""

    def __init__(self, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._free_requests = max_requests
        self._free_bytes = max_bytes
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def place(self, size_bytes: int) -> AsyncIterator[None]:
        """Waits for its turn and holds a place for a request of this size."""
        size = min(size_bytes, self._max_bytes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()
            else:
                self._release(size)  # admitted and cancelled at the same moment
            raise
        try:
            yield
        finally:
            self._release(size)

    def _release(self, size: int) -> None:
        self._free_requests += 1
        self._free_bytes += size
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._free_requests or size > self._free_bytes:
                    return
                self._free_requests -= 1
                self._free_bytes -= size
                turn.set_result(None)
            self._waiting.popleft()
