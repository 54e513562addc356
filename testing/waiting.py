"""Waiting for a condition. The deadline ends a test that hangs; it judges no speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool], *, timeout_s: float = DEADLINE_S, what: str = "the condition") -> None:
    """Polls a condition until it is true; fails after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.005)


async def until(condition: Callable[[], bool], *, timeout_s: float = DEADLINE_S, what: str = "the condition") -> None:
    """As `wait_until`, beside other tasks of the event loop."""

    async def holds() -> bool:
        return condition()

    await until_true(holds, timeout_s=timeout_s, what=what)


async def until_true(
    condition: Callable[[], Awaitable[bool]], *, timeout_s: float = DEADLINE_S, what: str = "the condition"
) -> None:
    """As `until`, for a condition that has to be awaited."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        await asyncio.sleep(0.002)
