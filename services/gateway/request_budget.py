"""Memory budget of requests: a gateway reads a request once its bytes are reserved; its sender waits until then.

Owners are served in turn, requests of one owner in order, and an owner never has more than its share: requests that
arrive slowly, or in great number, delay no other owner's.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.core.config import GatewaySettings

OWNERS = 4
"""Number of owners whose shares fill the budget together."""


class Reservation:
    """Bytes that are reserved for one request: the largest size at first, its own size once that is known."""

    def __init__(self, budget: RequestBudget, owner: str, size_bytes: int) -> None:
        self._budget, self._owner, self._size_bytes = budget, owner, size_bytes

    def shrink(self, size_bytes: int) -> None:
        """Releases all but `size_bytes`; does nothing if no more than that is reserved."""
        if size_bytes < self._size_bytes:
            self._budget.release(self._owner, self._size_bytes - size_bytes)
            self._size_bytes = size_bytes


@dataclass(frozen=True)
class _Waiting:
    size_bytes: int
    turn: asyncio.Future[None]


class RequestBudget:
    """Bytes that requests reserve and release."""

    def __init__(self, size_bytes: int, most_bytes: int) -> None:
        """
        Args:
            size_bytes: bytes that can be reserved at once.
            most_bytes: size of the largest request; at most `size_bytes`.
        """
        self.most_bytes = most_bytes
        self._free_bytes = size_bytes
        self._share_bytes = max(size_bytes // OWNERS, most_bytes)
        self._used: Counter[str] = Counter()
        self._queues: dict[str, deque[_Waiting]] = {}

    @classmethod
    def of(cls, settings: GatewaySettings) -> RequestBudget:
        """The budget that the settings give one port."""
        return cls(max(settings.max_arriving_bytes, settings.max_message_bytes), settings.max_message_bytes)

    @asynccontextmanager
    async def reserve(self, owner: str, size_bytes: int) -> AsyncIterator[Reservation]:
        """Reserves bytes while the context is open; waits until they are free.

        Args:
            owner: requests of one owner share a part of the budget and are served in order.
            size_bytes: the most that the request may have; at most `most_bytes`.
        """
        await self._take(owner, size_bytes)
        reservation = Reservation(self, owner, size_bytes)
        try:
            yield reservation
        finally:
            reservation.shrink(0)

    def release(self, owner: str, size_bytes: int) -> None:
        """Takes bytes back from an owner, and serves requests that wait for them."""
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
                self.release(owner, size_bytes)
            raise

    def _serve(self) -> None:
        """Serves the waiting requests that fit, owner after owner; an owner that was served goes to the end.

        A request that waits for its owner's share delays no other owner. One that waits for free bytes does: otherwise
        small requests would always overtake it.
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
