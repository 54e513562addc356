"""Send window: a bound on what one run or sampling session has on the wire at once, sliding over its seq_ids.

A request leaves the window when it has its answer. The oldest one without an answer may always be sent, whatever else
waits, so no order of arrival can block a run whose platform waits for exactly that one. A request that the
platform asks to send again later keeps its slot, which slows its owner down. Lives on the background loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_REQUESTS = 64
MAX_BYTES = 32 << 20


class Window:
    """At most `max_requests` consecutive seq_ids, beginning with `oldest`, and about `max_bytes` in all."""

    def __init__(self, oldest: int, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._oldest = oldest
        self._max_requests = max_requests
        self._free_bytes = max_bytes
        self._answered: set[int] = set()
        self._waiting: dict[int, tuple[int, asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def slot(self, seq_id: int, size_bytes: int) -> AsyncIterator[None]:
        """Waits until `seq_id` may be sent and holds its slot. Every seq_id must be given exactly once."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[seq_id] = size_bytes, turn
        self._admit()
        try:
            await turn
            yield
        finally:
            if self._waiting.pop(seq_id, None) is None:
                self._free_bytes += size_bytes
            self._answered.add(seq_id)
            while self._oldest in self._answered:
                self._answered.remove(self._oldest)
                self._oldest += 1
            self._admit()

    def _admit(self) -> None:
        for seq_id in range(self._oldest, self._oldest + self._max_requests):
            if seq_id not in self._waiting:
                continue
            size, turn = self._waiting[seq_id]
            if size > self._free_bytes and seq_id != self._oldest:
                return
            del self._waiting[seq_id]
            self._free_bytes -= size
            if not turn.cancelled():
                turn.set_result(None)
