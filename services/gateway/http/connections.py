"""Connections of the HTTP port: one whose next request does not arrive is closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def closing_after(seconds: float) -> type[asyncio.Protocol]:
    """A connection that is closed when the head of a request takes longer than `seconds`, the first one included.

    The same holds for the rest of a body that nobody reads. A body that is read has a time of its own, and a connection
    on which nothing is sent between two requests has the server's.
    """

    class ClosingProtocol(H11Protocol):
        """One connection."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._closing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._stop_watching()
            if self.conn.trailing_data[0]:
                self._watch()  # the beginning of the next request came together with this one

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Starts the time unless it runs already; stops it while a request is answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_watching()
            elif self._closing is None and not self.transport.is_closing():
                self._closing = self.loop.call_later(seconds, self.transport.close)

        def _stop_watching(self) -> None:
            if self._closing is not None:
                self._closing.cancel()
                self._closing = None

    return ClosingProtocol
