"""Room for requests in a gateway's memory: a request is read once there is room for it, and its sender waits till then.

Room is given in turn to owners, in order to those of one owner, and an owner never has more than its share, so that
requests that arrive slowly, or in masses, hold up nobody else's.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.core.config import GatewaySettings

OWNERS = 4
"""So many owners fill the memory together."""


class Room:
    """What one request may take of the memory; the largest it may be at first."""

    def __init__(self, memory: RequestMemory, owner: str, size_bytes: int) -> None:
        self._memory, self._owner, self._size_bytes = memory, owner, size_bytes

    def keep(self, size_bytes: int) -> None:
        """Gives back all but `size_bytes`."""
        if size_bytes < self._size_bytes:
            self._memory.give_back(self._owner, self._size_bytes - size_bytes)
            self._size_bytes = size_bytes


@dataclass(frozen=True)
class _Waiting:
    size_bytes: int
    turn: asyncio.Future[None]


class RequestMemory:
    """A number of bytes, given out to requests."""

    def __init__(self, size_bytes: int, most_bytes: int) -> None:
        """
        Args:
            size_bytes: all that is given out.
            most_bytes: the largest request; at most `size_bytes`.
        """
        self.most_bytes = most_bytes
        self._free_bytes = size_bytes
        self._share_bytes = max(size_bytes // OWNERS, most_bytes)
        self._used: Counter[str] = Counter()
        self._queues: dict[str, deque[_Waiting]] = {}

    @classmethod
    def of(cls, settings: GatewaySettings) -> RequestMemory:
        """What is set."""
        return cls(max(settings.max_arriving_bytes, settings.max_message_bytes), settings.max_message_bytes)

    @asynccontextmanager
    async def room(self, owner: str, size_bytes: int) -> AsyncIterator[Room]:
        """Room for a request of at most so many bytes, itself at most `most_bytes`; waits until there is some."""
        await self._take(owner, size_bytes)
        room = Room(self, owner, size_bytes)
        try:
            yield room
        finally:
            room.keep(0)

    def give_back(self, owner: str, size_bytes: int) -> None:
        """Takes room back from an owner, and gives it to those who wait."""
        self._free_bytes += size_bytes
        self._used[owner] -= size_bytes
        if not self._used[owner]:
            del self._used[owner]
        self._serve()

    async def _take(self, owner: str, size_bytes: int) -> None:
        waiting = _Waiting(size_bytes, asyncio.get_running_loop().create_future())
        self._queues.setdefault(owner, deque()).append(waiting)
        self._serve()
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.cancelled():
                self._serve()
            else:
                self.give_back(owner, size_bytes)
            raise

    def _serve(self) -> None:
        """Gives room to whose turn it is and to all behind them; who was served goes behind the others.

        Who waits for its own share holds up nobody. Who waits for the memory does, or small requests would always pass.
        """
        for owner, queue in list(self._queues.items()):
            del self._queues[owner]
            while queue and (queue[0].turn.done() or self._used[owner] + queue[0].size_bytes <= self._share_bytes):
                waiting = queue[0]
                if not waiting.turn.done():
                    if waiting.size_bytes > self._free_bytes:
                        self._queues = {owner: queue, **self._queues}
                        return
                    self._free_bytes -= waiting.size_bytes
                    self._used[owner] += waiting.size_bytes
                    waiting.turn.set_result(None)
                queue.popleft()
            if queue:
                self._queues[owner] = queue
