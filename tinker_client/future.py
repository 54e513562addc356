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
    """Result of an operation or call that the platform has not finished yet.

    `await future` gives the result in any event loop, any number of times.
    """

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
        """Waits for the result and returns it.

        Args:
            timeout: most seconds to wait; None: no limit.

        Returns:
            The value that the method which made this future describes.

        Raises:
            TinkerError: the operation was refused or failed.
            TimeoutError: it has not finished yet; it goes on, and the result can be asked for again.
            RuntimeError: called in a callback of a future, where waiting would never end.
        """
        self._loop.refuse_own_thread()
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        """Like `result`, for use in an event loop."""
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self._future)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits like `result` and returns the exception that it would raise; None if the operation succeeded.

        Args:
            timeout: most seconds to wait; None: no limit.

        Raises:
            TimeoutError: it has not finished yet.
            RuntimeError: called in a callback of a future, where waiting would never end.
        """
        self._loop.refuse_own_thread()
        return self._future.exception(timeout)

    def done(self) -> bool:
        """Returns whether `result` would return or raise at once."""
        return self._future.done()

    def cancel(self) -> bool:
        """Asks the platform to drop the operation.

        An operation that has not begun, or that samples, then fails with a RequestFailedError of code CANCELLED; one
        that trains and has begun finishes normally. The operations after it are carried out either way.

        Returns:
            False if it is done already, or cannot be cancelled, as a lookup; True if the platform is asked.
        """
        if self._cancel is None or self._future.done():
            return False
        self._loop.call_soon(self._cancel)
        return True

    def future(self) -> Future[T]:
        """Returns the result as a `concurrent.futures.Future`.

        Its callbacks run on the client's own thread: they must return soon, and must not wait for the client.
        """
        return self._future
