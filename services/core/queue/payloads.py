"""Packed payloads of jobs and responses in Redis: the bytes themselves if they are few, else a reference to a blob."""

from __future__ import annotations

from services.core.storage.blobs import INLINE_LIMIT_BYTES, BlobKind, BlobStore
from tinker_proto.internal.v1 import job_pb2

_INLINE = b"i"
_BLOB = b"b"


def blob_of(packed: bytes) -> str:
    """The reference in a packed value; "" if the content is in the value itself."""
    return packed[1:].decode() if packed[:1] == _BLOB else ""


class Payloads:
    """Packs and unpacks payloads over one blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def pack(self, kind: BlobKind, content: bytes) -> bytes:
        """The value to put into Redis for `content`."""
        if len(content) <= INLINE_LIMIT_BYTES:
            return _INLINE + content
        return _BLOB + (await self._blobs.put(kind, content)).encode()

    async def unpack(self, packed: bytes) -> bytes:
        """The content of a packed value.

        Raises:
            DataLossError: its blob is gone.
        """
        if packed[:1] == _INLINE:
            return packed[1:]
        return await self._blobs.get(packed[1:].decode())

    async def read_job(self, packed: bytes) -> job_pb2.Job:
        """The job in a packed value; raises as `unpack`."""
        return job_pb2.Job.FromString(await self.unpack(packed))

    async def discard(self, packed: bytes) -> None:
        """Removes the blob of a packed value that nothing refers to."""
        if packed[:1] == _BLOB:
            await self._blobs.delete(packed[1:].decode())
