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
from tinker_client._waiting import wait_for

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
        *,
        name: str = "",
        state: Callable[[], Coroutine[Any, Any, str]] | None = None,
    ) -> None:
        """
        Args:
            loop: carries out the coroutine.
            coroutine: gives the result.
            cancel: asks the platform to drop it; None: it cannot be cancelled.
            name: of the operation; "" for anything else.
            state: asks where it stands, as a phrase for whoever waits at a terminal.
        """
        self._loop = loop
        self._cancel = cancel
        self._name = name
        self._state = state
        self._future = loop.start(coroutine)

    def __await__(self) -> Generator[Any, None, T]:
        self._loop.refuse_lost(self._future)
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
            ForkedClientError: called in a forked child, and it was not done at the fork.
        """
        self._loop.refuse_waiting(self._future)
        state = self._state
        return wait_for(self._future, timeout, (lambda: self._loop.start(state())) if state is not None else None)

    async def result_async(self, timeout: float | None = None) -> T:
        """Like `result`, for use in an event loop."""
        self._loop.refuse_lost(self._future)
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self._future)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits like `result` and returns the exception that it would raise; None if the operation succeeded.

        Args:
            timeout: most seconds to wait; None: no limit.

        Raises:
            TimeoutError: it has not finished yet.
            RuntimeError: called in a callback of a future, where waiting would never end.
            ForkedClientError: called in a forked child, and it was not done at the fork.
        """
        self._loop.refuse_waiting(self._future)
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

    def __repr__(self) -> str:
        what = f"{self._name}: " if self._name else ""
        if not self._future.done():
            return f"<APIFuture {what}not done>"
        error = self._future.exception()
        return f"<APIFuture {what}{'done' if error is None else type(error).__name__}>"

    def future(self) -> Future[T]:
        """Returns the result as a `concurrent.futures.Future`.

        Its callbacks run on the client's own thread: they must return soon, and must not wait for the client.

        Raises:
            ForkedClientError: called in a forked child, and it was not done at the fork.
        """
        self._loop.refuse_lost(self._future)
        return self._future
