"""Uploads: files of adapters that clients send, kept for a day.

An upload's id is `<day>.<random>.<sha256>`; its key has the tenant's digest and the file's name too, so an id is worth
nothing to another tenant or for another file. A file is visible once all of it has arrived with the promised digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from services.core.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError, quoted
from services.core.storage.files import sha256_of
from services.core.storage.interface import Storage, Stored, in_threads
from tinker_proto.v1 import checkpoint_pb2

ROOT = "uploads"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_BLOCK_BYTES = 1 << 20
MAX_FILES = 10_000
KEEP = timedelta(days=1)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"(?P<day>\d{4}-\d{2}-\d{2})\.(?P<random>[0-9a-f]{32})\.(?P<sha256>[0-9a-f]{64})", re.ASCII)


class UploadStore:
    """Uploaded files of one storage."""

    def __init__(self, storage: Storage, max_bytes: int = 0, max_tenant_bytes: int = sys.maxsize) -> None:
        """
        Args:
            storage: the storage.
            max_bytes: size of the largest adapter_model.safetensors that `receive` takes; 0 for a process that receives
                none.
            max_tenant_bytes: bytes of the uploads of one tenant that `receive` keeps at once.
        """
        self._max_tenant_bytes = max_tenant_bytes
        self._storage = storage
        self._max_bytes = max_bytes

    async def receive(self, tenant: str, file: checkpoint_pb2.File, blocks: AsyncIterator[bytes]) -> str:
        """Stores a file as its blocks come; returns its id.

        Raises:
            InvalidArgumentError: the name, size or digest is not valid, or the content does not match them.
            ResourceExhaustedError: the storage is full.
            FailedPreconditionError: the tenant has uploaded too much within a day.
        """
        self._check(file)
        await asyncio.to_thread(self._check_space, tenant, file.size_bytes)
        upload_id = f"{datetime.now(UTC):%Y-%m-%d}.{uuid.uuid4().hex}.{file.sha256}"
        async with in_threads(self._open_new(_key(tenant, upload_id, file.name))) as target:
            await _receive(file, blocks, target)
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
        path = self.find(tenant, upload_id, name)
        self.verify(path, upload_id, name)
        return path

    def find(self, tenant: str, upload_id: str, name: str) -> Path:
        """An uploaded file on this machine's disk, as it is there.

        Raises:
            NotFoundError: it is gone.
        """
        try:
            return self._storage.open_file(_key(tenant, upload_id, name))
        except FileNotFoundError:
            message = f"upload {upload_id} of {name} is gone; uploads are kept for a day"
            raise NotFoundError(message, reason="UPLOAD_NOT_FOUND") from None

    def verify(self, path: Path, upload_id: str, name: str) -> None:
        """Reads a whole file that was found.

        Raises:
            DataLossError: it is not what was uploaded.
        """
        if sha256_of(path) != upload_id.rpartition(".")[2]:
            raise DataLossError(f"upload {upload_id} of {name} is corrupted", reason="UPLOAD_DAMAGED")

    def expired(self) -> list[Stored]:
        """Uploads older than a day."""
        oldest = datetime.now(UTC) - KEEP
        return [stored for stored in self._storage.files(ROOT) if stored.modified < oldest]

    def sweep(self) -> None:
        """Removes what has expired."""
        for stored in self.expired():
            self._storage.delete_file(stored.key)

    def _check_space(self, tenant: str, new_bytes: int) -> None:
        own = [stored for stored in self._storage.files(ROOT) if stored.key.split("/")[-1].startswith(_owner(tenant))]
        used = sum(stored.size_bytes for stored in own)
        if used + new_bytes > self._max_tenant_bytes or len(own) >= MAX_FILES:
            raise FailedPreconditionError(
                f"tenant {tenant} has {len(own)} uploads of {used} bytes, and with this file more than it may "
                f"(max_uploaded_bytes_per_tenant: {self._max_tenant_bytes}; {MAX_FILES} files); they go after a day",
                reason="UPLOAD_QUOTA",
            )

    @contextmanager
    def _open_new(self, key: str) -> Iterator[BinaryIO]:
        with self._storage.write_file(key) as path, open(path, "wb") as target:
            yield target

    def _check(self, file: checkpoint_pb2.File) -> None:
        limits = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: self._max_bytes}
        if file.name not in limits:
            raise InvalidArgumentError.must_be("file.name", f"{CONFIG_FILE} or {WEIGHTS_FILE}", quoted(file.name))
        if not 1 <= file.size_bytes <= limits[file.name]:
            rule = f"from 1 to {limits[file.name]} for {file.name}"
            raise InvalidArgumentError.must_be("file.size_bytes", rule, file.size_bytes)
        if not _SHA256.fullmatch(file.sha256):
            rule = "64 lower-case hexadecimal digits"
            raise InvalidArgumentError.must_be("file.sha256", rule, quoted(file.sha256))


async def _receive(file: checkpoint_pb2.File, blocks: AsyncIterator[bytes], target: BinaryIO) -> None:
    """Writes blocks to `target` and checks that they are the file."""
    digest, size = hashlib.sha256(), 0
    async for block in blocks:
        if len(block) > MAX_BLOCK_BYTES:
            raise InvalidArgumentError.must_be("content", f"at most {MAX_BLOCK_BYTES} bytes a block", len(block))
        size += len(block)
        if size > file.size_bytes:
            raise InvalidArgumentError.must_be("content", f"file.size_bytes = {file.size_bytes} bytes", "more")
        digest.update(block)
        await asyncio.to_thread(target.write, block)
    if size < file.size_bytes:
        raise InvalidArgumentError.must_be("content", f"file.size_bytes = {file.size_bytes} bytes", size)
    if digest.hexdigest() != file.sha256:
        raise InvalidArgumentError.must_be("content", f"bytes with SHA-256 {file.sha256}", digest.hexdigest())


def _key(tenant: str, upload_id: str, name: str) -> str:
    day, _, rest = upload_id.partition(".")
    return f"{ROOT}/{day}/{_owner(tenant)}.{rest}.{name}"


def _owner(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]
