"""How a request's body arrives: in which room of the memory, how slowly at most, and held until the answer begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.errors import DeadlineExceededError
from services.gateway.request_memory import RequestMemory, Room


class Arrival:
    """What a request of a known caller may take."""

    def __init__(self, memory: RequestMemory, owner: str, seconds: float) -> None:
        self._memory, self._owner, self._seconds = memory, owner, seconds

    @classmethod
    def admit(cls, request: Request, tenant: str, memory: RequestMemory, seconds: float) -> None:
        """Lets the body of a tenant's request be read."""
        request.state.arrival = cls(memory, f"{tenant} {request.scope['endpoint'].__qualname__}", seconds)

    @classmethod
    @asynccontextmanager
    async def of(cls, request: Request, size_bytes: int) -> AsyncIterator[Room]:
        """Waits for room for a body of at most so many bytes, and then for the body.

        Raises:
            DeadlineExceededError: it took too long to come.
        """
        arrival: Arrival = request.state.arrival
        held: AsyncExitStack = request.state.held
        memory = arrival._memory
        room = await held.enter_async_context(memory.room(arrival._owner, min(size_bytes, memory.most_bytes)))
        try:
            async with asyncio.timeout(arrival._seconds):
                yield room
        except TimeoutError:
            raise DeadlineExceededError.of_arrival(arrival._seconds) from None


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
