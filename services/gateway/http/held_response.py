"""Large answers whose memory is reserved until they are sent: callers of one tenant share a part of a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.core.config import GatewaySettings
from services.gateway.request_budget import RequestBudget

COPIES = 4
"""Of a result while it is answered: stored, parsed, converted, sent."""

_SENT_AT_ONCE = 256 << 10


class LargeAnswers:
    """The large answers of one gateway."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._largest = COPIES * (settings.max_result_bytes + settings.max_message_bytes)
        self._budget = RequestBudget(self._largest, self._largest)
        self._stall_s = settings.arrival_seconds

    async def of(self, tenant: str, size_bytes: int, make: Callable[[], Awaitable[Response]]) -> Response:
        """An answer about a result of so many bytes, which `make` reads once there is memory for it."""
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._budget.reserve(tenant, min(COPIES * size_bytes, self._largest)))
            made = await make()
            return HeldResponse(made, held.pop_all(), self._stall_s)


class HeldResponse(Response):
    """A response that is sent piece by piece, and then releases what it holds; a caller that stalls is cut off."""

    def __init__(self, made: Response, held: AsyncExitStack, stall_s: float) -> None:
        super().__init__(made.body, made.status_code, media_type=made.media_type)
        self._held = held
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        async with self._held:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            for position in range(0, len(self.body), _SENT_AT_ONCE):
                piece = self.body[position : position + _SENT_AT_ONCE]
                async with asyncio.timeout(self._stall_s):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
