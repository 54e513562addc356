"""Server of a worker process: its announcement, health service and metrics, from its start to SIGTERM."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from services.core.config import WorkerSettings
from services.core.process.metrics import serve_worker_metrics
from services.core.process.server import GrpcServer, until_stopped
from services.core.process.workers import HEARTBEAT_S, WorkerDirectory
from services.core.queue.connection import TRANSIENT_ERRORS
from tinker_proto.internal.v1 import job_pb2

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class WorkerServer:
    """Announces a worker while it runs, and serves its health on `worker_port`."""

    def __init__(
        self, settings: WorkerSettings, directory: WorkerDirectory, status: Callable[[], job_pb2.WorkerStatus]
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._status = status
        self._server = GrpcServer(settings)
        self._heartbeat: asyncio.Task[None] | None = None

    async def run(self, loops: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Serves and announces the worker, and runs its loops until they end or the process is told to stop.

        Returns the task of the loops, done or still running. The caller stops it and calls `leave`, in the order that
        its work needs.
        """
        await self._start()
        running, stopped = asyncio.create_task(loops), asyncio.create_task(until_stopped())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return running

    async def _start(self) -> None:
        serve_worker_metrics(self._settings)
        port = await self._server.start(self._settings.worker_port, ())
        await self._directory.announce(self._status())
        self._heartbeat = asyncio.create_task(self._announce())
        status = self._status()
        _log.info(
            "serving",
            base_model=status.base_model,
            fingerprint=status.base_fingerprint,
            worker=status.worker,
            health=port,
        )

    async def leave(self) -> None:
        """Withdraws the announcement and turns health to NOT_SERVING."""
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
    """A name for this process that no other process has or will have."""
    return f"{kind}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
