"""Adapters on their way in: files that clients upload, kept for a day.

An upload's id is `<day>.<random>.<sha256>`; its key has the tenant's digest and the file's name too, so an id is worth
nothing to another tenant or for another file. A file is visible once all of it has arrived with the promised digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from services.core.errors import DataLossError, InvalidArgumentError, NotFoundError
from services.core.storage.files import sha256_of
from services.core.storage.interface import Storage, Stored, in_threads
from tinker_proto.v1 import checkpoint_pb2

ROOT = "uploads"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_PIECE_BYTES = 1 << 20
KEEP = timedelta(days=1)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"(?P<day>\d{4}-\d{2}-\d{2})\.(?P<random>[0-9a-f]{32})\.(?P<sha256>[0-9a-f]{64})", re.ASCII)


class UploadStore:
    """Uploaded files of one storage."""

    def __init__(self, storage: Storage, max_bytes: int = 0) -> None:
        """
        Args:
            storage: the storage.
            max_bytes: size of the largest adapter_model.safetensors that `receive` takes; 0 for a process that receives
                none.
        """
        self._storage = storage
        self._max_bytes = max_bytes

    async def receive(self, tenant: str, file: checkpoint_pb2.File, pieces: AsyncIterator[bytes]) -> str:
        """Stores a file as its pieces come; returns its id.

        Raises:
            InvalidArgumentError: the name, size or digest is not allowed, or the content is not what it says.
            ResourceExhaustedError: the storage is full.
        """
        self._check(file)
        upload_id = f"{datetime.now(UTC):%Y-%m-%d}.{uuid.uuid4().hex}.{file.sha256}"
        async with in_threads(self._open_new(_key(tenant, upload_id, file.name))) as target:
            await _receive(file, pieces, target)
        return upload_id

    def has(self, tenant: str, upload_id: str, name: str) -> bool:
        """Whether a tenant has uploaded file `name` under this id."""
        return _ID.fullmatch(upload_id) is not None and self._storage.has_file(_key(tenant, upload_id, name))

    def open(self, tenant: str, upload_id: str, name: str) -> Path:
        """An uploaded file on this machine's disk, verified.

        Raises:
            NotFoundError: it is gone.
            DataLossError: it is not what was uploaded.
        """
        try:
            path = self._storage.open_file(_key(tenant, upload_id, name))
        except FileNotFoundError:
            message = f"upload {upload_id} of {name} is gone; uploads are kept for a day"
            raise NotFoundError(message, reason="UPLOAD_NOT_FOUND") from None
        if sha256_of(path) != upload_id.rpartition(".")[2]:
            raise DataLossError(f"upload {upload_id} of {name} is corrupted", reason="UPLOAD_DAMAGED")
        return path

    def expired(self) -> list[Stored]:
        """What was uploaded more than a day ago."""
        oldest = datetime.now(UTC) - KEEP
        return [stored for stored in self._storage.files(ROOT) if stored.modified < oldest]

    def sweep(self) -> None:
        """Removes what has expired."""
        for stored in self.expired():
            self._storage.delete_file(stored.key)

    @contextmanager
    def _open_new(self, key: str) -> Iterator[BinaryIO]:
        with self._storage.write_file(key) as path, open(path, "wb") as target:
            yield target

    def _check(self, file: checkpoint_pb2.File) -> None:
        limits = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: self._max_bytes}
        if file.name not in limits:
            message = f"is {file.name[:100]!r}; allowed are {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise InvalidArgumentError.at("file.name", message)
        if not 1 <= file.size_bytes <= limits[file.name]:
            message = f"is {file.size_bytes}; allowed for {file.name} are 1 to {limits[file.name]}"
            raise InvalidArgumentError.at("file.size_bytes", message)
        if not _SHA256.fullmatch(file.sha256):
            message = f"is {file.sha256[:100]!r}; allowed are 64 digits of lower-case hexadecimal"
            raise InvalidArgumentError.at("file.sha256", message)


async def _receive(file: checkpoint_pb2.File, pieces: AsyncIterator[bytes], target: BinaryIO) -> None:
    """Writes pieces to `target` and checks that they are the file."""
    digest, size = hashlib.sha256(), 0
    async for piece in pieces:
        if len(piece) > MAX_PIECE_BYTES:
            raise InvalidArgumentError.at("content", f"has {len(piece)} bytes; allowed are {MAX_PIECE_BYTES}")
        size += len(piece)
        if size > file.size_bytes:
            raise InvalidArgumentError.at("content", f"has more bytes than file.size_bytes, {file.size_bytes}")
        digest.update(piece)
        await asyncio.to_thread(target.write, piece)
    if size < file.size_bytes:
        raise InvalidArgumentError.at("content", f"has {size} bytes; file.size_bytes is {file.size_bytes}")
    if digest.hexdigest() != file.sha256:
        raise InvalidArgumentError.at("content", "does not have the SHA-256 that file.sha256 says")


def _key(tenant: str, upload_id: str, name: str) -> str:
    day, _, rest = upload_id.partition(".")
    owner = hashlib.sha256(tenant.encode()).hexdigest()[:32]
    return f"{ROOT}/{day}/{owner}.{rest}.{name}"
