"""Payloads too big for Redis: immutable files on the shared volume, named by what they hold.

Redis keeps a reference. Writing large values into Redis stalls every other client behind its append-only file, so what
is over `INLINE_LIMIT_BYTES` goes here. A blob's first path segment is its kind, the second the day that it was written;
`sweep` removes days that nothing can refer to any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from services.core.errors import DataLossError
from services.core.files import write_whole

INLINE_LIMIT_BYTES = 64 * 1024

BlobKind = Literal["jobs", "results", "tokenizers"]


class BlobStore:
    """Files below one root, written whole."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, kind: BlobKind, content: bytes) -> str:
        """Stores `content` and returns its reference."""
        reference = f"{kind}/{datetime.now(UTC):%Y-%m-%d}/{uuid.uuid4().hex}"
        await asyncio.to_thread(write_whole, self._root / reference, content)
        return reference

    async def put_once(self, kind: BlobKind, content: bytes) -> str:
        """Stores `content` under its SHA-256, so that storing it again takes no space; returns its reference."""
        reference = f"{kind}/{hashlib.sha256(content).hexdigest()}"
        if not (self._root / reference).exists():
            await asyncio.to_thread(write_whole, self._root / reference, content)
        return reference

    async def get(self, reference: str) -> bytes:
        """Reads a blob.

        Raises:
            DataLossError: the file is gone.
        """
        try:
            return await asyncio.to_thread((self._root / reference).read_bytes)
        except FileNotFoundError:
            raise DataLossError(f"blob {reference} is missing from the blob store", reason="BLOB_MISSING") from None

    async def delete(self, reference: str) -> None:
        """Removes a blob; nothing happens if there is none."""
        await asyncio.to_thread((self._root / reference).unlink, missing_ok=True)

    async def sweep(self, kind: BlobKind, older_than: timedelta) -> int:
        """Removes whole days of `kind` that ended more than `older_than` ago; returns how many."""
        oldest = datetime.now(UTC) - older_than - timedelta(days=1)
        return await asyncio.to_thread(self._sweep, kind, oldest)

    def _sweep(self, kind: BlobKind, oldest: datetime) -> int:
        days = [day for day in (self._root / kind).glob("*-*-*") if day.name < f"{oldest:%Y-%m-%d}"]
        for day in days:
            shutil.rmtree(day, ignore_errors=True)
        return len(days)
