"""Calls that must not be given up because Redis is away or the storage is full: what they report has happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from services.core.errors import ResourceExhaustedError, UnavailableError
from services.core.queue.connection import TRANSIENT_ERRORS

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


async def until_reached(call: Callable[[], Awaitable[_T]]) -> _T:
    """Repeats an idempotent call for as long as Redis or the storage does not take it."""
    while True:
        try:
            return await call()
        except (*TRANSIENT_ERRORS, UnavailableError, ResourceExhaustedError) as error:
            _log.warning("queue or storage unavailable, trying again", error=str(error))
            await asyncio.sleep(0.5)
