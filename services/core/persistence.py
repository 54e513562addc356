"""Calls that must not be given up because Redis is away: what they report has happened already."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from services.core.connection import TRANSIENT_ERRORS

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


async def until_reached(call: Callable[[], Awaitable[_T]]) -> _T:
    """Repeats an idempotent call for as long as Redis cannot be reached."""
    while True:
        try:
            return await call()
        except TRANSIENT_ERRORS as error:
            _log.warning("queue unreachable, trying again", error=str(error))
            await asyncio.sleep(0.5)
