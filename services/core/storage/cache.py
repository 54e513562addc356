"""Local cache of downloads from a remote storage.

Stored files never change under a name, so a copy cannot be stale. Over the size limit, the least recently opened copies
are removed, but none that was opened within the last hour: it may be in use.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from services.core.storage.files import partial_beside

LIMIT_BYTES = 20 << 30
IN_USE = timedelta(hours=1)


class StorageCache:
    """Downloads below one local directory."""

    def __init__(self, root: Path, *, limit_bytes: int = LIMIT_BYTES, in_use: timedelta = IN_USE) -> None:
        self._root = root
        self._limit_bytes = limit_bytes
        self._in_use = in_use

    def opened(self, name: str, download: Callable[[Path], None]) -> Path:
        """A file or a directory; `download` writes it at a given path if it is not here."""
        target = self._root / hashlib.sha256(name.encode()).hexdigest()
        try:
            os.utime(target)
        except FileNotFoundError:
            self._download(target, download)
        return target

    def _download(self, target: Path, download: Callable[[Path], None]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(target)
        try:
            download(partial)
            self._free_space(partial)
            partial.rename(target)
        except OSError:
            if not target.exists():  # else another process has downloaded it meanwhile
                raise
        finally:
            _remove(partial)

    def _free_space(self, arrived: Path) -> None:
        others = sorted((path.stat().st_mtime, path) for path in self._root.iterdir() if path != arrived)
        space = self._limit_bytes - _size(arrived) - sum(_size(path) for _, path in others)
        for last_opened, path in others:
            if space >= 0 or time.time() - last_opened < self._in_use.total_seconds():
                break
            space += _size(path)
            discarded = partial_beside(path)
            path.rename(discarded)
            _remove(discarded)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir())
    return path.stat().st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
