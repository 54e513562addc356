"""Packed payloads of jobs and responses in Redis: the bytes themselves if they are few, else a reference to a blob.

A blob's reference is followed by a space and the number of its bytes, so that whoever has to move the content knows
that before.
"""

from __future__ import annotations

import hashlib

from services.core.storage.blobs import INLINE_LIMIT_BYTES, BlobKind, BlobStore, digest_of
from tinker_proto.internal.v1 import job_pb2

_INLINE = b"i"
_BLOB = b"b"


def blob_of(packed: bytes) -> str:
    """The reference in a packed value; "" if the content is in the value itself."""
    return packed[1:].partition(b" ")[0].decode() if packed[:1] == _BLOB else ""


def size_of(packed: bytes) -> int:
    """Bytes of the content of a packed value; 0 if the value is of a version that did not record it."""
    return len(packed) - 1 if packed[:1] == _INLINE else int(packed.partition(b" ")[2] or 0)


def sha256_of(packed: bytes) -> str:
    """The SHA-256 of the content of a packed value, in hexadecimal; "" for a blob that version 0.1 wrote."""
    return hashlib.sha256(packed[1:]).hexdigest() if packed[:1] == _INLINE else digest_of(blob_of(packed))


class Payloads:
    """Packs and unpacks payloads over one blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def pack(self, kind: BlobKind, content: bytes) -> bytes:
        """The value to put into Redis for `content`."""
        if len(content) <= INLINE_LIMIT_BYTES:
            return _INLINE + content
        return _BLOB + f"{await self._blobs.put(kind, content)} {len(content)}".encode()

    async def unpack(self, packed: bytes) -> bytes:
        """The content of a packed value.

        Raises:
            DataLossError: its blob is gone.
        """
        if packed[:1] == _INLINE:
            return packed[1:]
        return await self._blobs.get(blob_of(packed))

    async def unpack_part(self, packed: bytes, start: int, length: int) -> bytes:
        """At most `length` bytes of the content of a packed value, from `start` on; not verified.

        Raises:
            DataLossError: its blob is gone.
        """
        if packed[:1] == _INLINE:
            return packed[1 + start : 1 + start + length]
        return await self._blobs.get_part(blob_of(packed), start, length)

    async def read_job(self, packed: bytes) -> job_pb2.Job:
        """The job in a packed value; raises as `unpack`."""
        return job_pb2.Job.FromString(await self.unpack(packed))

    async def discard(self, packed: bytes) -> None:
        """Removes the blob of a packed value that nothing refers to."""
        if packed[:1] == _BLOB:
            await self._blobs.delete(blob_of(packed))
