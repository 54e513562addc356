"""Garbage in the storage: files that nothing refers to any more.

Only files older than a day count, because a file that is being written is not referenced yet. A checkpoint is kept
while a path names it or a pin keeps it; a blob while a log, a queue or a result refers to it. Tokenizers are few and
small, and are always kept. Snapshots of runs are removed by trainers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from services.core.catalog.identity import Identity
from services.core.catalog.pins import Pins
from services.core.errors import FailedPreconditionError
from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection
from services.core.queue.payloads import blob_of
from services.core.storage.blobs import BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.exports import ExportStore
from services.core.storage.interface import Storage, Stored
from services.core.storage.uploads import UploadStore

YOUNG = timedelta(days=1)
_AT_ONCE = 1000
_COLLECTED_BLOBS = ("jobs/", "results/")

WasteKind = Literal["unfinished write", "checkpoint", "blob", "upload", "export"]


@dataclass(frozen=True)
class Waste:
    """One find: its key in the storage; for a checkpoint or blob, in its store."""

    kind: WasteKind
    key: str
    size_bytes: int


class GarbageCollector:
    """Finds and removes garbage; safe while the platform runs."""

    def __init__(self, connection: RedisConnection, storage: Storage, *, young: timedelta = YOUNG) -> None:
        """
        Args:
            connection: the Redis of the platform that uses the storage.
            storage: its storage.
            young: age below which files are kept.
        """
        self._commands = connection.commands
        self._storage = storage
        self._identity = Identity(connection, storage)
        self._checkpoints = CheckpointStore(storage)
        self._blobs = BlobStore(storage)
        self._pins = Pins(connection, self._checkpoints)
        self._young = young

    async def check(self, *, delete_all_checkpoints: bool = False) -> None:
        """Checks that Redis is the one that knows what the storage needs; to be called before anything is removed.

        Args:
            delete_all_checkpoints: whether all checkpoints may be garbage.

        Raises:
            FailedPreconditionError: the storage belongs to another Redis; or CATALOG_EMPTY if the catalog has no
                checkpoint but the storage has some, unless `delete_all_checkpoints`.
        """
        await self._identity.check()
        if delete_all_checkpoints:
            return
        for known in ("checkpoint:*", "unnamed:*"):
            async for _ in self._keys(known):
                return
        if await asyncio.to_thread(lambda: next(self._checkpoints.all(), None)) is not None:
            raise FailedPreconditionError(
                "the catalog has no checkpoint, but the storage has some, and all of those without a pin would be "
                "deleted; if this is intended, pass --delete-all-checkpoints",
                reason="CATALOG_EMPTY",
            )

    async def find(self) -> list[Waste]:
        """All garbage at this moment."""
        leftovers = await asyncio.to_thread(lambda: list(self._storage.leftovers(self._young)))
        uploads = await asyncio.to_thread(UploadStore(self._storage, 0).expired)
        exports = await asyncio.to_thread(ExportStore(self._storage).expired)
        return [
            *(Waste("unfinished write", stored.key, stored.size_bytes) for stored in leftovers),
            *[waste async for waste in self._unneeded_checkpoints()],
            *[waste async for waste in self._unneeded_blobs()],
            *(Waste("upload", stored.key, stored.size_bytes) for stored in uploads),
            *(Waste("export", stored.key, stored.size_bytes) for stored in exports),
        ]

    async def remove(self, waste: Waste) -> bool:
        """Removes one find; False if it has been referenced meanwhile."""
        match waste.kind:
            case "unfinished write":
                await asyncio.to_thread(self._storage.delete_leftover, waste.key)
            case "checkpoint":
                if not await self._is_unneeded(waste.key):
                    return False
                await asyncio.to_thread(self._checkpoints.delete, waste.key)
            case "blob":
                await self._blobs.delete(waste.key)
            case "upload":
                await asyncio.to_thread(self._storage.delete_file, waste.key)
            case "export":
                await asyncio.to_thread(self._storage.delete_directory, waste.key)
        return True

    async def _unneeded_checkpoints(self) -> AsyncIterator[Waste]:
        for location, stored in await asyncio.to_thread(lambda: list(self._checkpoints.all())):
            if not self._is_old(stored) or not await self._is_unneeded(location):
                continue
            if await asyncio.to_thread(self._checkpoints.exists, location):  # it may have been deleted meanwhile
                yield Waste("checkpoint", location, stored.size_bytes)

    async def _is_unneeded(self, location: str) -> bool:
        return not await self._pins.is_known(location) and not await self._pins.are_needed(location)

    async def _unneeded_blobs(self) -> AsyncIterator[Waste]:
        references = await self._references()
        for reference, stored in await asyncio.to_thread(lambda: list(self._blobs.all())):
            if reference.startswith(_COLLECTED_BLOBS) and self._is_old(stored) and reference not in references:
                yield Waste("blob", reference, stored.size_bytes)

    async def _references(self) -> set[str]:
        """The blobs that Redis refers to. Jobs move from hashes into streams, so streams are read last."""
        packed = [
            *[value async for value in self._hash_values("early:*")],
            *[value async for value in self._hash_values("sample-jobs:*")],
            *[value async for value in self._entries("log:*")],
            *[value async for value in self._entries("sample:*")],
            *[value async for value in self._responses()],
        ]
        return {reference for value in packed if (reference := blob_of(value))}

    async def _hash_values(self, pattern: str) -> AsyncIterator[bytes]:
        async for key in self._keys(pattern):
            for value in await self._commands.hvals(key):
                yield value

    async def _entries(self, pattern: str) -> AsyncIterator[bytes]:
        async for key in self._keys(pattern):
            position = "0-0"
            while found := await streams.entries(self._commands, key, after=position, count=_AT_ONCE):
                position = found[-1].entry_id
                for entry in found:
                    yield entry.fields[b"entry"]

    async def _responses(self) -> AsyncIterator[bytes]:
        async for key in self._keys("operation:*"):
            response = await self._commands.hget(key, "response")
            if response is not None:
                yield response

    def _keys(self, pattern: str) -> AsyncIterator[str]:
        async def keys() -> AsyncIterator[str]:
            async for key in self._commands.scan_iter(match=keyspace.PREFIX + pattern, count=_AT_ONCE):
                yield key.decode()

        return keys()

    def _is_old(self, stored: Stored) -> bool:
        return stored.modified < datetime.now(UTC) - self._young
