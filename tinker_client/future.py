"""The future that every operation returns at once.

It can be awaited in any event loop, more than once, and read from any thread. Waiting never cancels anything: a
timeout, or a cancelled task that was awaiting, leaves the operation alone. Only `cancel()` asks the platform to drop
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from tinker_client._loop import BackgroundLoop

T = TypeVar("T")


class APIFuture(Generic[T]):
    """The result, to come, of something that the platform does."""

    def __init__(
        self,
        loop: BackgroundLoop,
        coroutine: Coroutine[Any, Any, T],
        cancel: Callable[[], object] | None = None,
    ) -> None:
        self._loop = loop
        self._cancel = cancel
        self._future = loop.start(coroutine)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Waits for the result at most `timeout` seconds; TimeoutError does not cancel the operation.

        Raises:
            TinkerError: the operation failed.
            TimeoutError: it has not finished yet; ask again.
        """
        self._loop.refuse_own_thread()
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        """Like `result`, for use in an event loop."""
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self._future)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits like `result` and returns what it would raise, or None."""
        self._loop.refuse_own_thread()
        return self._future.exception(timeout)

    def done(self) -> bool:
        """Whether `result` would return or raise at once."""
        return self._future.done()

    def cancel(self) -> bool:
        """Asks the platform to drop the operation; False if it is done already, or is a call that ends soon anyway.

        An operation that has not begun, or that samples, then fails with a RequestFailedError of code CANCELLED; one
        that trains goes on and finishes normally. Either way the operations after it are carried out.
        """
        if self._cancel is None or self._future.done():
            return False
        self._loop.call_soon(self._cancel)
        return True

    def future(self) -> Future[T]:
        """The result as a `concurrent.futures.Future`; its callbacks run on the client's thread and must not block."""
        return self._future
