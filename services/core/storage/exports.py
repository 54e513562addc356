"""Exports: directories of full models that merges have written, kept for a day.

One directory an operation, under the operation's name; what its files must contain is in the operation's result. A
storage's directories are flat, so a file in a subdirectory of an export is stored under an escaped name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.core.errors import NotFoundError
from services.core.retention import KEEP_FINISHED
from services.core.storage.files import sha256_of
from services.core.storage.interface import Storage, Stored
from tinker_proto.v1 import checkpoint_pb2

ROOT = "exports"


class ExportStore:
    """Exported directories of one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @contextmanager
    def write(self, operation: str) -> Iterator[Path]:
        """Yields an empty directory to fill, subdirectories included; on a clean exit it is the operation's export.

        Raises:
            AlreadyExistsError: another worker has written it: one that was taken for dead.
            ResourceExhaustedError: the storage is full.
        """
        with self._storage.write_directory(f"{ROOT}/{operation}") as directory:
            yield directory
            _flatten(directory)

    def exists(self, operation: str) -> bool:
        """Whether an operation has an export."""
        return self._storage.has_directory(f"{ROOT}/{operation}")

    def files(self, operation: str) -> list[checkpoint_pb2.File]:
        """The files of an operation's export; raises as `read`."""
        try:
            directory = self._storage.open_directory(f"{ROOT}/{operation}")
        except FileNotFoundError:
            raise _gone(operation) from None
        files = describe(directory)
        for file in files:
            file.name = _relative_name(file.name)
        return files

    def read(self, operation: str, name: str, start: int, length: int) -> bytes:
        """At most `length` bytes of a file from `start` on.

        Raises:
            NotFoundError: it has expired.
        """
        try:
            return self._storage.read(f"{ROOT}/{operation}", _flat_name(name), start, length)
        except FileNotFoundError:
            raise _gone(operation) from None

    def expired(self) -> list[Stored]:
        """Exports whose operations' results have expired."""
        # An export is written before its operation is finished, hence the hour.
        oldest = datetime.now(UTC) - KEEP_FINISHED - timedelta(hours=1)
        return [stored for stored in self._storage.directories(ROOT) if stored.modified < oldest]

    def sweep(self) -> None:
        """Removes what has expired."""
        for stored in self.expired():
            self._storage.delete_directory(stored.key)


def describe(directory: Path) -> list[checkpoint_pb2.File]:
    """The files of a directory and its subdirectories, by relative name."""
    return [
        checkpoint_pb2.File(
            name=path.relative_to(directory).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_of(path)
        )
        for path in _files(directory)
    ]


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _flatten(directory: Path) -> None:
    """Moves all files of a directory's subdirectories into it, each under its flat name."""
    for path in _files(directory):
        path.rename(directory / _flat_name(path.relative_to(directory).as_posix()))
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _flat_name(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def _relative_name(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")


def _gone(operation: str) -> NotFoundError:
    return NotFoundError(
        f"the files of operation {operation} are gone; they are kept for a day", reason="EXPORT_EXPIRED"
    )
