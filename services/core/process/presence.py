"""How a worker process is seen from outside: its announcement, its health service, and its end."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable

import structlog

from services.core.config import WorkerSettings
from services.core.process.metrics import serve_worker_metrics
from services.core.process.server import GrpcServer
from services.core.process.workers import HEARTBEAT_S, WorkerDirectory
from services.core.queue.connection import TRANSIENT_ERRORS
from tinker_proto.internal.v1 import job_pb2

_log = structlog.get_logger(__name__)


class Presence:
    """Announces a worker for as long as it runs, and serves its health on a port of its own."""

    def __init__(
        self, settings: WorkerSettings, directory: WorkerDirectory, status: Callable[[], job_pb2.WorkerStatus]
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._status = status
        self._server = GrpcServer(settings)
        self._heartbeat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Says SERVING and begins to announce."""
        serve_worker_metrics(self._settings)
        port = await self._server.start(self._settings.worker_port, ())
        await self._directory.announce(self._status())
        self._heartbeat = asyncio.create_task(self._announce())
        status = self._status()
        _log.info("serving", base_model=status.base_model, worker=status.worker, health=port)

    async def leave(self) -> None:
        """Stops announcing and says NOT_SERVING, before the worker puts its work down."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        await self._directory.withdraw(self._status().worker)
        await self._server.drain()

    async def _announce(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self._directory.announce(self._status())
            except TRANSIENT_ERRORS as error:
                _log.warning("cannot announce, queue unreachable", error=str(error))


def worker_name(kind: str) -> str:
    """A name for this process that no other has or will have."""
    return f"{kind}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
