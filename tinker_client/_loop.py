"""The one background event loop of the process: a daemon thread that owns every channel of this client.

Nothing that runs on it may block; callers wait in their own thread, or await in their own loop, whatever that is: a
script, a notebook, a server. The loop starts with the first client and stops at interpreter exit, after what
`at_exit` was given has had its bounded time.

The process may fork at any moment. The loop's thread stands still meanwhile, so that it holds no lock which the child
would wait for. In the child the loop is left alone for ever, and every use of it is a ForkedClientError.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from tinker_client._fork import ForkSafeLock, at_fork, keep_for_ever
from tinker_client._waiting import wait_for
from tinker_client.errors import TinkerError, used_after_fork

T = TypeVar("T")

EXIT_SECONDS = 5.0
_STANDSTILL_S = 1.0


class BackgroundLoop:
    """An event loop in a daemon thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself keeps only weak references
        self._closers: set[Callable[[], Coroutine[Any, Any, None]]] = set()
        self._process = os.getpid()
        self._stopped = False
        self._standstills: dict[int, threading.Event] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="tinker-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the loop and returns its future, which cannot be cancelled; callable from any thread."""
        if self.is_forked:
            coroutine.close()
            raise used_after_fork("this client")
        if self._stopped:
            coroutine.close()
            raise RuntimeError("the interpreter is exiting: the client has been closed")
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._loop.call_soon_threadsafe(self._begin, coroutine, future)
        return future

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for its value in the calling thread."""
        self.refuse_own_thread()
        return wait_for(self.start(coroutine))

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Calls a function on the loop soon; callable from any thread."""
        self.refuse_fork()
        self._loop.call_soon_threadsafe(callback)

    def refuse_own_thread(self) -> None:
        """Raises RuntimeError when called on the loop's thread, where waiting would never end."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback of a future must not wait for the client: await, or use another thread")

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the loop's."""
        return os.getpid() != self._process

    def refuse_fork(self) -> None:
        """Raises ForkedClientError in a forked child."""
        if self.is_forked:
            raise used_after_fork("this client")

    def refuse_waiting(self, future: Future[Any]) -> None:
        """Raises where waiting for a future of this loop would never end.

        Raises:
            RuntimeError: this is the loop's thread.
            ForkedClientError: this is a forked child, and the future was not done at the fork.
        """
        self.refuse_own_thread()
        self.refuse_lost(future)

    def refuse_lost(self, future: Future[Any]) -> None:
        """Raises ForkedClientError if a future of this loop can never be done, in a forked child."""
        if self.is_forked and not future.done():
            raise used_after_fork("this future")

    def stand_still(self) -> None:
        """Holds the loop's thread until `go_on`, in the same thread as this; gives up if it is busy for long."""
        if self.is_forked or self._stopped or threading.current_thread() is self._thread:
            return
        reached, go_on = threading.Event(), threading.Event()

        def stand() -> None:
            reached.set()
            go_on.wait()

        self._standstills[threading.get_ident()] = go_on
        self._loop.call_soon_threadsafe(stand)
        reached.wait(_STANDSTILL_S)

    def go_on(self) -> None:
        """Undoes `stand_still`."""
        if (go_on := self._standstills.pop(threading.get_ident(), None)) is not None:
            go_on.set()

    def at_exit(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Has a coroutine function run at interpreter exit; all of them together get EXIT_SECONDS."""
        self._closers.add(closer)

    def forget(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Undoes `at_exit`."""
        self._closers.discard(closer)

    def _begin(self, coroutine: Coroutine[Any, Any, T], future: Future[T]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(done, future))

    def _finish(self, task: asyncio.Task[T], future: Future[T]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            future.set_exception(TinkerError("the client was closed while this was under way"))
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def _stop(self) -> None:
        if self.is_forked:
            return
        self._stopped = True
        asyncio.run_coroutine_threadsafe(self._close_everything(), self._loop)
        self._thread.join(EXIT_SECONDS + 1)

    async def _close_everything(self) -> None:
        closing = [asyncio.ensure_future(closer()) for closer in list(self._closers)]
        if closing:
            await asyncio.wait(closing, timeout=EXIT_SECONDS)
        self._loop.stop()


class _OfProcess:
    """The loop of this process, or the one that it inherited by a fork."""

    def __init__(self) -> None:
        self.lock = ForkSafeLock()
        self.loop: BackgroundLoop | None = None
        at_fork(before=self._before, in_parent=self._in_parent, in_child=self._in_child)

    def _before(self) -> None:
        if self.loop is not None:
            self.loop.stand_still()

    def _in_parent(self) -> None:
        if self.loop is not None:
            self.loop.go_on()

    def _in_child(self) -> None:
        if self.loop is not None:
            keep_for_ever(self.loop)


_of_process = _OfProcess()


def background_loop() -> BackgroundLoop:
    """The process' loop, started on first use.

    Raises:
        ForkedClientError: this process was forked from one that had a loop.
    """
    with _of_process.lock:
        if _of_process.loop is None:
            _of_process.loop = BackgroundLoop()
        elif _of_process.loop.is_forked:
            raise used_after_fork("tinker_client")
        return _of_process.loop
