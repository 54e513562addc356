"""Server of a worker process: its announcement, health service and metrics, from its start to SIGTERM."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from services.core.config import WorkerSettings, fingerprints_of
from services.core.errors import FailedPreconditionError
from services.core.process.metrics import serve_worker_metrics
from services.core.process.server import GrpcServer, until_stopped
from services.core.process.workers import EXPIRY_S, HEARTBEAT_S, WorkerDirectory, names_of
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
        try:
            await self._start()
        except BaseException:
            loops.close()
            raise
        running, stopped = asyncio.create_task(loops), asyncio.create_task(until_stopped())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return running

    async def _start(self) -> None:
        await self._until_nobody_contradicts()
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

    async def _until_nobody_contradicts(self) -> None:
        """Waits for the end of workers that call something else by a name of this one's base model.

        One that has died counts as live for a while.

        Raises:
            FailedPreconditionError: such a worker is alive.
        """
        status, end = self._status(), time.monotonic() + EXPIRY_S + HEARTBEAT_S
        while (other := await self._directory.contradicting(status, fingerprints_of(self._settings))) is not None:
            if time.monotonic() > end:
                message = (
                    f"base_model: must be served under the same names by all workers (got {_served(status)}, but "
                    f"worker {other.worker} serves {_served(other)}); stop that worker, or use other names"
                )
                raise FailedPreconditionError(message, reason="BASE_MODEL_NAME_IN_USE")
            await asyncio.sleep(HEARTBEAT_S / 4)

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


def _served(status: job_pb2.WorkerStatus) -> str:
    """What a worker serves, for messages."""
    return f"{' alias '.join(map(repr, names_of(status)))} with fingerprint {status.base_fingerprint or 'unknown'}"


def host_and_pid(worker: str) -> tuple[str, int]:
    """Host and process id of the worker with a name that `worker_name` has made."""
    kind_and_host, pid, _ = worker.rsplit("-", 2)
    return kind_and_host.partition("-")[2], int(pid)
