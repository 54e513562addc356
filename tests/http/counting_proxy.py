"""A TCP proxy that counts the HTTP requests that pass; it breaks a connection when either end is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 1 << 16


class CountingProxy:
    """Passes bytes to a port of this machine."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.requests = 0
        self.port = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[CountingProxy]:
        """Listens on a free port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            while self._connections:
                for writer in self._writers:
                    writer.transport.abort()
                await asyncio.wait(self._connections)

    def cut(self) -> None:
        """Breaks all connections; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            self.requests += 1  # it came to nothing, and was made all the same
            writer.close()
            return
        both = {writer, inner_writer}
        self._writers |= both
        await asyncio.gather(
            self._pass(reader, inner_writer, count=True), self._pass(inner_reader, writer, count=False)
        )
        self._writers -= both
        for each in both:
            with suppress(OSError):
                await each.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        with suppress(OSError):
            while content := await reader.read(_CHUNK):
                if count:
                    self.requests += content.count(b" /api/v1/")
                writer.write(content)
                await writer.drain()
        writer.close()
