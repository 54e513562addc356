"""A full disk under the embedded Redis, which ends when it cannot write: recognised, said, and waited for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from services.cli.last_words import last_words
from services.core.errors import ResourceExhaustedError
from services.core.storage.interface import FULL
from services.core.storage.reserve import Space

NEEDED_BYTES = 64 << 10
"""Free space below which Redis is not started; small, because saves leave little free on a small disk."""

_WRITE_FAILED = "AOF write error"
"""What Redis says when it ends because not all was written: a full disk takes a part."""

_LOOK_EVERY_S = 0.5


def is_full(data_dir: Path) -> bool:
    """Whether Redis could hardly write in a data directory."""
    return Space.of(data_dir).free < NEEDED_BYTES


def has_ended_by_it(data_dir: Path, log: Path, log_start: int) -> bool:
    """Whether a Redis that has just ended found the disk, or its quota, full: now, or by its log."""
    said = last_words(log, log_start)
    return is_full(data_dir) or any(words in said for words in (_WRITE_FAILED, *map(os.strerror, FULL)))


async def until_there_is_space(data_dir: Path) -> None:
    """Waits until Redis can be started; at least a moment, because a quota does not show in the free space."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        if not is_full(data_dir):
            return


def refuse_full_disk(data_dir: Path) -> None:
    """Checks before anything starts.

    Raises:
        ResourceExhaustedError: the disk is full.
    """
    if is_full(data_dir):
        raise full_disk(data_dir)


def full_disk(data_dir: Path) -> ResourceExhaustedError:
    """The error of a start on a full disk."""
    free = f"{Space.of(data_dir).free >> 10} KiB are free"
    message = f"the disk of {data_dir} is full ({free}): Redis cannot write; make room, and start again"
    return ResourceExhaustedError(message, reason="STORAGE_FULL")
