"""Retry of calls that report something that has happened, until Redis and the storage accept them."""

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
    """Repeats an idempotent call until Redis and the storage can be reached and the storage has space."""
    while True:
        try:
            return await call()
        except (*TRANSIENT_ERRORS, UnavailableError, ResourceExhaustedError) as error:
            _log.warning("queue or storage unavailable, trying again", error=str(error))
            await asyncio.sleep(0.5)
