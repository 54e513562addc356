"""Memory and time for the body of a request: reserved before it is read, released when the answer begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.errors import DeadlineExceededError
from services.gateway.request_budget import RequestBudget, Reservation
from services.gateway.work import Work


@dataclass(frozen=True)
class BodyBudget:
    """Budget of memory and time for the body of one request of a known caller."""

    tenant: str
    work: Work
    requests: RequestBudget
    owner: str
    seconds: float

    held: AsyncExitStack
    """What the request holds until it is answered."""

    @asynccontextmanager
    async def reserve(self, size_bytes: int) -> AsyncIterator[Reservation]:
        """Waits until `size_bytes` are reserved; the body must then arrive while the context is open.

        Raises:
            DeadlineExceededError: it took too long.
        """
        size_bytes = min(size_bytes, self.requests.most_bytes)
        reservation = await self.held.enter_async_context(self.requests.reserve(self.owner, size_bytes))
        try:
            async with asyncio.timeout(self.seconds):
                yield reservation
        except TimeoutError:
            raise DeadlineExceededError.of_arrival(self.seconds) from None


class ReleaseWhenAnswered:
    """Middleware that releases what a request holds when its answer begins, or when it ends without one."""

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
