"""Payloads too big for Redis: immutable files in the storage, verified when they are read.

Redis keeps a reference. Writing large values into Redis stalls every other client behind its append-only file, so what
is over `INLINE_LIMIT_BYTES` goes here. A reference's first segment is the blob's kind, the last one ends with the
SHA-256 of the content; that of a job or a result has the day between them, and `sweep` removes whole days.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Literal

from services.core.errors import DataLossError
from services.core.storage.interface import Storage, Stored

ROOT = "blobs"
INLINE_LIMIT_BYTES = 64 * 1024

BlobKind = Literal["jobs", "results", "tokenizers"]

_DIGEST = re.compile(r"[0-9a-f]{64}$")


def digest_of(reference: str) -> str:
    """The SHA-256 of a blob's content, in hexadecimal; "" for what version 0.1 wrote."""
    found = _DIGEST.search(reference)
    return found[0] if found else ""


class BlobStore:
    """Blobs of one storage, written whole."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def put(self, kind: BlobKind, content: bytes) -> str:
        """Stores `content` and returns its reference.

        Raises:
            ResourceExhaustedError, UnavailableError: the storage is full, or cannot be reached.
        """
        return await asyncio.to_thread(self._put, kind, content)

    async def put_once(self, kind: BlobKind, content: bytes) -> str:
        """Stores `content` under its SHA-256, so that storing it again takes no space; returns its reference."""
        return await asyncio.to_thread(self._put_once, kind, content)

    async def get(self, reference: str) -> bytes:
        """Reads a blob.

        Raises:
            DataLossError: the file is gone, truncated or corrupted; names it.
        """
        return await asyncio.to_thread(self._get, reference)

    async def get_part(self, reference: str, start: int, length: int) -> bytes:
        """At most `length` bytes of a blob from `start` on; not verified.

        Raises:
            DataLossError: the file is gone.
        """
        return await asyncio.to_thread(self._get_part, reference, start, length)

    async def delete(self, reference: str) -> None:
        """Removes a blob; nothing happens if there is none."""
        await asyncio.to_thread(self._storage.delete_file, _key(reference))

    async def sweep(self, kind: BlobKind, older_than: timedelta) -> int:
        """Removes blobs of `kind` whose whole day ended more than `older_than` ago; returns how many."""
        oldest = datetime.now(UTC) - older_than - timedelta(days=1)
        return await asyncio.to_thread(self._sweep, kind, oldest)

    def all(self) -> Iterator[tuple[str, Stored]]:
        """Every reference that has a blob."""
        for stored in self._storage.files(ROOT):
            yield stored.key.removeprefix(f"{ROOT}/"), stored

    def _put(self, kind: BlobKind, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        reference = f"{kind}/{datetime.now(UTC):%Y-%m-%d}/{uuid.uuid4().hex}-{digest}"
        self._storage.put(_key(reference), content)
        return reference

    def _put_once(self, kind: BlobKind, content: bytes) -> str:
        reference = f"{kind}/{hashlib.sha256(content).hexdigest()}"
        if not self._storage.has_file(_key(reference)):
            self._storage.put(_key(reference), content)
        return reference

    def _get(self, reference: str) -> bytes:
        with _missing_named(reference):
            content = self._storage.get(_key(reference))
        digest = digest_of(reference)
        if digest and hashlib.sha256(content).hexdigest() != digest:
            raise DataLossError(f"blob {reference} is truncated or corrupted", reason="BLOB_DAMAGED")
        return content

    def _get_part(self, reference: str, start: int, length: int) -> bytes:
        with _missing_named(reference):
            return self._storage.get_part(_key(reference), start, length)

    def _sweep(self, kind: BlobKind, oldest: datetime) -> int:
        swept = 0
        for stored in self._storage.files(_key(kind)):
            if stored.key.split("/")[2] < f"{oldest:%Y-%m-%d}":
                self._storage.delete_file(stored.key)
                swept += 1
        return swept


@contextmanager
def _missing_named(reference: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataLossError(f"blob {reference} is missing from the blob store", reason="BLOB_MISSING") from None


def _key(reference: str) -> str:
    return f"{ROOT}/{reference}"
