"""How a request's body arrives: in which room of the memory, how slowly at most, and held until the answer begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.errors import DeadlineExceededError
from services.gateway.request_budget import RequestMemory, Room


@dataclass(frozen=True)
class Arrival:
    """What the body of a known caller's request may take."""

    memory: RequestMemory
    owner: str
    seconds: float

    held: AsyncExitStack
    """What the request holds until it is answered."""

    @asynccontextmanager
    async def room(self, size_bytes: int) -> AsyncIterator[Room]:
        """Waits for room for a body of at most so many bytes, which then must come while this is open.

        Raises:
            DeadlineExceededError: it took too long.
        """
        size_bytes = min(size_bytes, self.memory.most_bytes)
        room = await self.held.enter_async_context(self.memory.room(self.owner, size_bytes))
        try:
            async with asyncio.timeout(self.seconds):
                yield room
        except TimeoutError:
            raise DeadlineExceededError.of_arrival(self.seconds) from None


class HeldUntilAnswered:
    """Gives back what a request holds when its answer begins, or there will be none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application around another."""
        async with AsyncExitStack() as held:

            async def answering(message: Message) -> None:
                await held.aclose()
                await send(message)

            scope.setdefault("state", {})["held"] = held
            await self._app(scope, receive, answering)
