"""Work on requests that may take seconds: beside the gateway's loop, a few pieces at once, tenants in turn.

Work that leaves Python's lock alone, or gives it away every few milliseconds, goes on a thread; work that holds it, in
a process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import structlog

from services.core.errors import UnavailableError
from services.gateway.request_budget import RequestBudget

AT_ONCE = 2
"""Large pieces of work on threads, and as many in processes; one tenant has one of each at a time."""

SMALL = 1 << 16
"""Characters or tokens whose work takes no turn: it is over in some hundredths of a second."""

MESSAGE_BYTES = 64 << 10
"""Messages up to this size are worked on in the loop: within some hundredths of a second, whatever is in them."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Work:
    """The work of one gateway. Processes are started when they are first needed."""

    def __init__(self) -> None:
        self._threads = RequestBudget(AT_ONCE, 1)
        self._processes = RequestBudget(AT_ONCE, 1)
        self._pool: ProcessPoolExecutor | None = None

    async def in_thread(self, tenant: str, size: int, function: Callable[..., T], *args: object) -> T:
        """What a function returns or raises, on a thread; work of a large `size` once it is the tenant's turn.

        Args:
            tenant: whose request it is.
            size: characters or tokens that are worked on.
            function: called with `args`.
        """
        if size <= SMALL:
            return await asyncio.to_thread(function, *args)
        async with self._threads.reserve(tenant, 1):
            return await _whole(asyncio.create_task(asyncio.to_thread(function, *args)))

    async def on(self, tenant: str, size_bytes: int, function: Callable[..., T], *args: object) -> T:
        """What a function returns or raises about a message: called here, or for a large one as `in_thread` says."""
        if size_bytes <= MESSAGE_BYTES:
            return function(*args)
        return await self.in_thread(tenant, size_bytes, function, *args)

    async def in_process(self, tenant: str, function: Callable[..., T], *args: object) -> T:
        """What a function of a module returns or raises, in another process once it is the tenant's turn.

        Raises:
            UnavailableError: the process died.
        """
        async with self._processes.reserve(tenant, 1):
            if self._pool is None:
                self._pool = _pool()
            pool = self._pool
            try:
                return await _whole(asyncio.get_running_loop().run_in_executor(pool, function, *args))
            except BrokenProcessPool:
                _log.error("a process died that worked on a request", function=function.__name__)
                if self._pool is pool:
                    self.close()
                raise UnavailableError("a process that worked on the request died; try again") from None

    def close(self) -> None:
        """Ends the processes once they have nothing to do."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


async def _whole(work: asyncio.Future[T]) -> T:
    """The result of work that cannot be interrupted: a caller that gives up keeps its turn until the work has ended."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("spawn"), initializer=_end_with_the_gateway)


def _end_with_the_gateway() -> None:
    """Leaves interrupts to the gateway, and ends when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
