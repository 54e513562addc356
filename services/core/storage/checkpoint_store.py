"""Store of checkpoints: one directory each, visible whole or not at all, never changed once it is visible.

A location is a relative path, `<training_run_id>/<kind>/<name>/<seq_id>`. It has the seq_id of the save that wrote it,
so overwriting a name writes a new directory, and the old one stays readable while it is pinned. The catalog maps names
to locations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.core.errors import DataLossError, NotFoundError
from services.core.storage.interface import Storage, Stored
from services.core.storage.records import CheckpointRecords
from services.core.unnamed_weights import is_unnamed, weights_gone_error
from tinker_proto.v1 import checkpoint_pb2

ROOT = "checkpoints"
MANIFEST_FILE = "checkpoint.json"
AGE_SUFFIX = ".age"
"""Behind the name of a file that is encrypted with age."""

_BLOCK_BYTES = 8 << 20


class CheckpointStore:
    """Checkpoint directories of one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.records = CheckpointRecords(storage)
        """What the catalog says of each checkpoint."""

    @contextmanager
    def write(self, location: str) -> Iterator[Path]:
        """Yields an empty directory to fill; on a clean exit it becomes `location`, on an exception it is gone.

        Raises:
            AlreadyExistsError: there is a checkpoint at `location`, before or after it was filled.
            ResourceExhaustedError: the storage is full.
        """
        with self._storage.write_directory(_key(location)) as directory:
            yield directory

    def exists(self, location: str) -> bool:
        """Whether there is a checkpoint at `location`."""
        return self._storage.has_directory(_key(location))

    def open(self, location: str) -> Path:
        """The directory of a checkpoint on this machine's disk.

        Raises:
            NotFoundError: there is none at `location`.
            DataLossError: it was damaged in transfer.
        """
        try:
            return self._storage.open_directory(_key(location))
        except FileNotFoundError:
            raise _gone(location) from None

    def delete(self, location: str) -> None:
        """Removes a checkpoint and its record; nothing happens if there is none."""
        self.records.delete(location)
        self._storage.delete_directory(_key(location))

    def size_bytes(self, location: str) -> int:
        """Bytes of all files of a checkpoint; raises as `open`."""
        return sum(self._sizes(location).values())

    def files(self, location: str) -> list[checkpoint_pb2.File]:
        """The files that the manifest names, with what they must contain.

        Raises:
            NotFoundError: there is no checkpoint at `location`.
            DataLossError: its manifest is damaged, or a file is missing; names it.
        """
        sizes = self._sizes(location)
        digests = self._digests(location, sizes.get(MANIFEST_FILE, 0))
        if missing := sorted(digests.keys() - sizes.keys()):
            raise DataLossError(f"{missing[0]} of checkpoint {location} is missing", reason="CHECKPOINT_DAMAGED")
        return [checkpoint_pb2.File(name=name, size_bytes=sizes[name], sha256=digests[name]) for name in digests]

    def read(self, location: str, name: str, start: int, length: int) -> bytes:
        """At most `length` bytes of a file from `start` on.

        Raises:
            NotFoundError: there is no such checkpoint or file.
        """
        try:
            return self._storage.read(_key(location), name, start, length)
        except FileNotFoundError:
            raise _gone(location) from None

    def all(self) -> Iterator[tuple[str, Stored]]:
        """Every location that has a checkpoint."""
        for stored in self._storage.directories(ROOT):
            yield stored.key.removeprefix(f"{ROOT}/"), stored

    def verify(self, location: str) -> None:
        """Reads a whole checkpoint.

        Raises:
            NotFoundError, DataLossError: it is gone, or a file is missing, truncated or corrupted; names it.
        """
        for file in self.files(location):
            if self._sha256(location, file) != file.sha256:
                message = f"{file.name} of checkpoint {location} is corrupted: its SHA-256 is not the manifest's"
                raise DataLossError(message, reason="CHECKPOINT_DAMAGED")

    def _sha256(self, location: str, file: checkpoint_pb2.File) -> str:
        """SHA-256 of the file in the storage, not of a local copy."""
        digest = hashlib.sha256()
        for start in range(0, file.size_bytes, _BLOCK_BYTES):
            digest.update(self.read(location, file.name, start, _BLOCK_BYTES))
        return digest.hexdigest()

    def _sizes(self, location: str) -> dict[str, int]:
        try:
            return dict(self._storage.directory_sizes(_key(location)))
        except FileNotFoundError:
            raise _gone(location) from None

    def _digests(self, location: str, size_bytes: int) -> dict[str, str]:
        try:
            digests = json.loads(self.read(location, MANIFEST_FILE, 0, size_bytes))["files"]
            return {str(name): str(digest) for name, digest in digests.items()}
        except (NotFoundError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{MANIFEST_FILE} of checkpoint {location} is missing or damaged"
            raise DataLossError(message, reason="CHECKPOINT_DAMAGED") from error


def _key(location: str) -> str:
    return f"{ROOT}/{location}"


def _gone(location: str) -> NotFoundError:
    if is_unnamed(location):
        return weights_gone_error(location)
    return NotFoundError(f"the files of checkpoint {location} are gone", reason="CHECKPOINT_NOT_FOUND")
