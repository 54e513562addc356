"""The reserve: disk space that is left free, so that Redis, which ends when it cannot write, always can.

Checkpoints, snapshots, uploads and exports leave all of it. New work, which grows Redis, stops at half of it; results
of what was accepted before may use the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.core.errors import ResourceExhaustedError

DEFAULT_SHARE = 0.05
DEFAULT_MOST = 1 << 30
_LOOK_EVERY_S = 1.0
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class Space:
    """Bytes of a disk."""

    free: int
    """What a process without privileges can use."""

    total: int

    @classmethod
    def of(cls, path: Path) -> Space:
        """The disk that a path is on, or will be on."""
        existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        found = os.statvfs(existing)
        return cls(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


@dataclass(frozen=True)
class Reserve:
    """The reserve of the disk of one directory."""

    directory: Path

    size_bytes: int = 0
    """0: `DEFAULT_SHARE` of the disk, at most `DEFAULT_MOST`."""

    def check(self, key: str) -> None:
        """Checks before something of unknown size is written to `key`.

        Raises:
            ResourceExhaustedError: less than the reserve is free.
        """
        self._check(key, 1.0)

    def check_written(self, key: str) -> None:
        """Checks after it was written, and before it becomes visible.

        Raises:
            ResourceExhaustedError: less than half of the reserve is left.
        """
        self._check(key, 0.5)

    def is_for_redis_alone(self) -> bool:
        """Whether new work has to wait, because only half of the reserve is left."""
        space = Space.of(self.directory)
        return space.free < self._size(space) / 2

    def _check(self, key: str, share: float) -> None:
        space = Space.of(self.directory)
        size = self._size(space)
        if space.free < size * share:
            state = f"{_mebibytes(space.free)} are free, and {_mebibytes(size)} are a reserve"
            message = f"the platform's storage is full ({state}): {key} was not written"
            raise ResourceExhaustedError(message, reason="STORAGE_FULL", retry_after_s=30.0)

    def _size(self, space: Space) -> int:
        return self.size_bytes or min(int(space.total * DEFAULT_SHARE), DEFAULT_MOST)


@dataclass
class RoomForWork:
    """The check that every new operation passes: looks at the disks at most once a second."""

    reserves: Sequence[Reserve]
    _looked: float = field(default=float("-inf"), init=False)
    _full: str = field(default="", init=False)

    def check(self) -> None:
        """Checks that new work may be accepted.

        Raises:
            ResourceExhaustedError: it may not, until there is space.
        """
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            full = [reserve for reserve in self.reserves if reserve.is_for_redis_alone()]
            self._full = f"{_mebibytes(Space.of(full[0].directory).free)} are free" if full else ""
        if self._full:
            message = f"the platform's disk is full ({self._full}): new work is accepted again when there is space"
            raise ResourceExhaustedError(message, reason="STORAGE_FULL", retry_after_s=_RETRY_AFTER_S)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
