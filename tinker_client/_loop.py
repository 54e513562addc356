"""The one background event loop of the process: a daemon thread that owns every channel of this client.

Nothing that runs on it may block; callers wait in their own thread, or await in their own loop, whatever that is: a
script, a notebook, a server. The loop starts with the first client and stops at interpreter exit, after what
`at_exit` was given has had its bounded time.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from tinker_client._waiting import wait_for
from tinker_client.errors import TinkerError

T = TypeVar("T")

EXIT_SECONDS = 5.0


class BackgroundLoop:
    """An event loop in a daemon thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself keeps only weak references
        self._closers: set[Callable[[], Coroutine[Any, Any, None]]] = set()
        self._process = os.getpid()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="tinker-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the loop and returns its future, which cannot be cancelled; callable from any thread."""
        if os.getpid() != self._process:
            coroutine.close()
            raise RuntimeError("this client was made before a fork: make a new ServiceClient in the child process")
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
        self._loop.call_soon_threadsafe(callback)

    def refuse_own_thread(self) -> None:
        """Raises RuntimeError when called on the loop's thread, where waiting would never end."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback of a future must not wait for the client: await, or use another thread")

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
        if os.getpid() != self._process:
            return
        self._stopped = True
        asyncio.run_coroutine_threadsafe(self._close_everything(), self._loop)
        self._thread.join(EXIT_SECONDS + 1)

    async def _close_everything(self) -> None:
        closing = [asyncio.ensure_future(closer()) for closer in list(self._closers)]
        if closing:
            await asyncio.wait(closing, timeout=EXIT_SECONDS)
        self._loop.stop()


_lock = threading.Lock()
_loops: dict[int, BackgroundLoop] = {}


def background_loop() -> BackgroundLoop:
    """The process' loop, started on first use; a forked child gets its own."""
    with _lock:
        process = os.getpid()
        if process not in _loops:
            _loops[process] = BackgroundLoop()
        return _loops[process]
