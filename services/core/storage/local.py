"""Storage in a local directory, or one that all services mount.

Writes go beside their target, are flushed to the disk, and are renamed: a crash or a power cut leaves the old state or
the new one. A stored directory is any directory with files in it; single files and directories never share a parent.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.core.errors import AlreadyExistsError
from services.core.storage.files import (
    PARTIAL_PREFIX,
    make_partial,
    partial_beside,
    remove_empty_parents,
    sync_directory,
    sync_file,
    sync_tree,
    write_whole,
)
from services.core.storage.interface import Stored, full_disk_named
from services.core.storage.reserve import Reserve

OWNED = ("checkpoints", "snapshots", "blobs", "uploads", "exports")
"""Top directories of the platform's files; a data directory has others too."""


class LocalStorage:
    """Files and directories below one root; see services.core.storage.interface.Storage."""

    def __init__(self, root: Path, reserve: Reserve | None = None) -> None:
        self._root = root
        self._reserve = reserve or Reserve(root)

    def put(self, key: str, content: bytes) -> None:
        """See Storage."""
        with full_disk_named(key):
            write_whole(self._root / key, content)

    @contextmanager
    def write_file(self, key: str) -> Iterator[Path]:
        """See Storage."""
        target = self._root / key
        self._reserve.check(key)
        with full_disk_named(key):
            partial = make_partial(target, Path.touch)
            try:
                yield partial
                self._reserve.check_written(key)
                sync_file(partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            sync_directory(target.parent)

    def get(self, key: str) -> bytes:
        """See Storage."""
        return (self._root / key).read_bytes()

    def get_part(self, key: str, start: int, length: int) -> bytes:
        """See Storage."""
        with open(self._root / key, "rb") as file:
            file.seek(start)
            return file.read(length)

    def open_file(self, key: str) -> Path:
        """See Storage."""
        if not self.has_file(key):
            raise FileNotFoundError(key)
        return self._root / key

    def has_file(self, key: str) -> bool:
        """See Storage."""
        return (self._root / key).is_file()

    def delete_file(self, key: str) -> None:
        """See Storage."""
        (self._root / key).unlink(missing_ok=True)
        self._remove_empty_parents(key)

    def files(self, prefix: str) -> Iterator[Stored]:
        """See Storage."""
        for directory, names in self._walk(prefix):
            for name in names:
                path = directory / name
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                yield Stored(self._key(path), found.st_size, _time(found))

    @contextmanager
    def write_directory(self, key: str) -> Iterator[Path]:
        """See Storage."""
        target = self._root / key
        if target.exists():
            raise _taken(key)
        self._reserve.check(key)
        with full_disk_named(key):
            partial = make_partial(target, Path.mkdir)
            try:
                yield partial
                self._reserve.check_written(key)
                sync_tree(partial)
                _rename_new(partial, target, key)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            sync_directory(target.parent)

    def open_directory(self, key: str) -> Path:
        """See Storage."""
        if not self.has_directory(key):
            raise FileNotFoundError(key)
        return self._root / key

    def has_directory(self, key: str) -> bool:
        """See Storage."""
        return (self._root / key).is_dir()

    def directory_sizes(self, key: str) -> Mapping[str, int]:
        """See Storage."""
        with os.scandir(self.open_directory(key)) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}

    def read(self, key: str, name: str, start: int, length: int) -> bytes:
        """See Storage."""
        return self.get_part(f"{key}/{name}", start, length)

    def delete_directory(self, key: str) -> None:
        """See Storage."""
        directory = self._root / key
        discarded = partial_beside(directory)
        try:
            directory.rename(discarded)
        except FileNotFoundError:
            return
        shutil.rmtree(discarded, ignore_errors=True)
        self._remove_empty_parents(key)

    def directories(self, prefix: str) -> Iterator[Stored]:
        """See Storage."""
        for directory, names in self._walk(prefix):
            if names:
                size = sum((directory / name).stat().st_size for name in names)
                yield Stored(self._key(directory), size, _time(directory.stat()))

    def leftovers(self, older_than: timedelta) -> Iterator[Stored]:
        """See Storage: partial writes, and directories that are empty."""
        newest = datetime.now(UTC) - older_than
        for owned in OWNED:
            for parent, directories, names in os.walk(self._root / owned, topdown=False):
                partial = [name for name in (*directories, *names) if name.startswith(PARTIAL_PREFIX)]
                paths = [Path(parent) / name for name in partial]
                is_empty = not directories and not names and Path(parent).name != owned
                if is_empty and not Path(parent).name.startswith(PARTIAL_PREFIX):
                    paths.append(Path(parent))
                for path in paths:
                    found = path.stat()
                    if _time(found) < newest:
                        yield Stored(self._key(path), _size(path), _time(found))

    def delete_leftover(self, key: str) -> None:
        """See Storage."""
        path = self._root / key
        if not path.name.startswith(PARTIAL_PREFIX):
            with suppress(OSError):  # not empty any more
                path.rmdir()
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def _walk(self, prefix: str) -> Iterator[tuple[Path, list[str]]]:
        """Directories below a prefix and the names of their files; partial writes are left out."""
        for parent, directories, names in os.walk(self._root / prefix):
            directories[:] = sorted(name for name in directories if not name.startswith(PARTIAL_PREFIX))
            yield Path(parent), sorted(name for name in names if not name.startswith(PARTIAL_PREFIX))

    def _remove_empty_parents(self, key: str) -> None:
        remove_empty_parents(self._root / key, self._root / key.partition("/")[0])

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _rename_new(source: Path, target: Path, key: str) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise _taken(key) from None


def _taken(key: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"there is a directory at {key} already", reason="CHECKPOINT_EXISTS")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _time(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)
