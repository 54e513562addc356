"""Waiting at a terminal: after two seconds a line on standard error says for what, and for how long it may last."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TextIO, TypeVar

T = TypeVar("T")

QUIET_S = 2.0
"""Shorter waits show nothing; then the line is renewed this often."""

_CLEAR_LINE = "\r\x1b[K"
_WIDTH = 100


def wait_for(
    future: Future[T],
    timeout: float | None = None,
    state: Callable[[], Future[str]] | None = None,
    *,
    terminal: TextIO | None = None,
    quiet_s: float = QUIET_S,
) -> T:
    """The result of a future; waits for it in the calling thread.

    Args:
        future: what to wait for.
        timeout: most seconds to wait; None: no limit.
        state: starts to ask where it stands, as a phrase; None: nobody can tell.
        terminal: where to show it, if it is a terminal; None: standard error.
        quiet_s: seconds before anything is shown.

    Raises:
        TimeoutError: it is not done.
        Exception: what the future raises.
    """
    terminal = terminal or sys.stderr
    if not terminal.isatty():
        return future.result(timeout)
    began = time.monotonic()
    shown = False
    asked: Future[str] | None = None
    try:
        while not future.done():
            left = quiet_s if timeout is None else min(quiet_s, began + timeout - time.monotonic())
            if left <= 0:
                break
            if wait([future], left).done or (timeout is not None and left < quiet_s):
                continue
            phrase = asked.result() if asked is not None and asked.done() and asked.exception() is None else ""
            if state is not None and (asked is None or asked.done()):
                asked = state()
            line = f"waiting for {phrase or 'the platform'} ({time.monotonic() - began:.0f} s)"
            terminal.write(_CLEAR_LINE + line[:_WIDTH])
            terminal.flush()
            shown = True
    finally:
        if shown:
            terminal.write(_CLEAR_LINE)
            terminal.flush()
    return future.result(0)
