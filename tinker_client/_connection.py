"""The parts that all clients of one ServiceClient share: a channel, and a session as soon as something needs one.

Nothing is sent before the first use. `close` ends the session; it is also called at interpreter exit, and then has a
bounded time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import timedelta

from tinker_client._address import Address
from tinker_client._loop import BackgroundLoop, background_loop
from tinker_client._session import OpenSession
from tinker_client._transport import PATIENCE, Transport
from tinker_client.errors import AuthenticationError

KEY_VARIABLE = "TINKER_API_KEY"


class Connection:
    """One platform, one API key, at most one session."""

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        *,
        user_metadata: Mapping[str, str] | None = None,
        patience: timedelta = PATIENCE,
    ) -> None:
        address = Address.resolve(base_url)
        key = api_key or os.environ.get(KEY_VARIABLE)
        if not key:
            raise AuthenticationError(
                f"no API key: set {KEY_VARIABLE} or pass api_key=. `tinker-platform keys create`, on the machine of "
                "the platform, makes one.",
                code="UNAUTHENTICATED",
                reason="NO_API_KEY",
            )
        self.loop: BackgroundLoop = background_loop()
        self.transport = self.loop.run(_open_transport(address, key, patience))
        self._user_metadata = dict(user_metadata or {})
        self._session: OpenSession | None = None
        self._opening = asyncio.Lock()
        self.loop.at_exit(self.close)

    async def session(self) -> OpenSession:
        """The session, opened by the first call. On the background loop."""
        async with self._opening:
            if self._session is None:
                self._session = await OpenSession.open(self.transport, self._user_metadata)
            return self._session

    async def close(self) -> None:
        """Ends the session, if there is one, and closes the channel; again is no harm. On the background loop."""
        self.loop.forget(self.close)
        self.transport.refuse_new_calls()
        session, self._session = self._session, None
        if session is not None:
            await session.end()
        await self.transport.close()


async def _open_transport(address: Address, api_key: str, patience: timedelta) -> Transport:
    return Transport(address, api_key, patience)
