"""Storage: where everything lives that is too big for Redis, behind one interface, chosen by URL.

Two kinds of things are stored: files, and directories of files. Both are visible whole or not at all, and a directory
never changes once it is visible. A key is a relative path below a root that the platform owns; `checkpoints/`,
`snapshots/`, `blobs/`, `uploads/` and `exports/` each belong to one class. All methods block: asyncio calls them in
threads.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from services.core.errors import ResourceExhaustedError

_T = TypeVar("_T")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk, an exceeded quota and an exceeded file size limit."""


@dataclass(frozen=True)
class Stored:
    """A file or a directory in a storage."""

    key: str
    size_bytes: int
    modified: datetime


class Storage(Protocol):
    """Files and directories by key.

    Every method raises ResourceExhaustedError (STORAGE_FULL) or UnavailableError (STORAGE_UNAVAILABLE) when the storage
    cannot do what it is asked to; what was visible before stays visible.
    """

    def put(self, key: str, content: bytes) -> None:
        """Writes a file, in place of what was there."""

    def write_file(self, key: str) -> AbstractContextManager[Path]:
        """Yields a path to write a file at; on a clean exit it becomes `key`, on an exception it is gone."""

    def get(self, key: str) -> bytes:
        """Reads a file; FileNotFoundError if there is none."""

    def get_part(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes of a file from `start` on; FileNotFoundError if there is none."""

    def open_file(self, key: str) -> Path:
        """A file on this machine's disk; FileNotFoundError if there is none."""

    def has_file(self, key: str) -> bool:
        """Whether there is a file at `key`."""

    def delete_file(self, key: str) -> None:
        """Removes a file; nothing happens if there is none."""

    def files(self, prefix: str) -> Iterator[Stored]:
        """All files below a prefix of whole path segments; none of them belongs to a directory."""

    def write_directory(self, key: str) -> AbstractContextManager[Path]:
        """Yields an empty directory to fill with files; on a clean exit it becomes `key`, on an exception it is gone.

        Raises:
            AlreadyExistsError: there is a directory at `key`, before or after it was filled.
        """

    def open_directory(self, key: str) -> Path:
        """A directory on this machine's disk; FileNotFoundError if there is none."""

    def has_directory(self, key: str) -> bool:
        """Whether there is a directory at `key`."""

    def directory_sizes(self, key: str) -> Mapping[str, int]:
        """Bytes of each file of a directory; FileNotFoundError if there is none."""

    def read(self, key: str, name: str, start: int, length: int) -> bytes:
        """At most `length` bytes of a directory's file from `start` on; FileNotFoundError if there is none."""

    def delete_directory(self, key: str) -> None:
        """Removes a directory; nothing happens if there is none."""

    def directories(self, prefix: str) -> Iterator[Stored]:
        """All directories below a prefix of whole path segments."""

    def leftovers(self, older_than: timedelta) -> Iterator[Stored]:
        """Leftovers of writes that never completed."""

    def delete_leftover(self, key: str) -> None:
        """Removes what `leftovers` has found."""


@asynccontextmanager
async def in_threads(writing: AbstractContextManager[_T]) -> AsyncIterator[_T]:
    """A write whose beginning and end, which block, happen in threads; it ends also if its caller does as it begins."""
    beginning = asyncio.ensure_future(asyncio.to_thread(writing.__enter__))
    try:
        target = await asyncio.shield(beginning)
    except asyncio.CancelledError as error:
        await asyncio.wait([beginning])
        if beginning.exception() is None:
            await asyncio.to_thread(writing.__exit__, type(error), error, error.__traceback__)
        raise
    try:
        yield target
    except BaseException as error:
        if not await asyncio.to_thread(writing.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await asyncio.to_thread(writing.__exit__, None, None, None)


@contextmanager
def full_disk_named(key: str) -> Iterator[None]:
    """Turns the OSError of a full disk into a platform error.

    Raises:
        ResourceExhaustedError: the storage is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        message = f"the platform's storage is full ({error.strerror}): {key} was not written"
        raise ResourceExhaustedError(message, reason="STORAGE_FULL", retry_after_s=30.0) from error
