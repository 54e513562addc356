"""Verification of checkpoints: every file that a manifest names must exist and have its SHA-256.

Both the locations in the catalog and those in the storage are checked, so that lost files are found as well as damaged
ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.core.catalog.pins import Pins
from services.core.errors import DataLossError, NotFoundError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.interface import Storage
from tinker_proto.path import TinkerPath

_AT_ONCE = 1000


@dataclass(frozen=True)
class Verified:
    """Result of verifying one checkpoint."""

    location: str
    size_bytes: int
    problem: str
    """The first fault found; empty if there is none."""


async def verify_checkpoints(
    connection: RedisConnection, storage: Storage, paths: Sequence[TinkerPath] = ()
) -> list[Verified]:
    """Verifies the checkpoints of some paths, or all there are; by location.

    Raises:
        NotFoundError: there is no checkpoint at one of the paths.
    """
    checkpoints = CheckpointStore(storage)
    pins = Pins(connection, checkpoints)
    if paths:
        locations = [await _location(connection, path) for path in paths]
    else:
        stored = await asyncio.to_thread(lambda: [location for location, _ in checkpoints.all()])
        locations = sorted({*stored, *await _named(connection)})
    verified = []
    for location in locations:
        one = await asyncio.to_thread(_verify, checkpoints, location)
        was_deleted_meanwhile = one.problem and not await asyncio.to_thread(checkpoints.exists, location)
        if not was_deleted_meanwhile or await pins.is_known(location):
            verified.append(one)
    return verified


def _verify(checkpoints: CheckpointStore, location: str) -> Verified:
    try:
        checkpoints.verify(location)
        return Verified(location, checkpoints.size_bytes(location), "")
    except (NotFoundError, DataLossError) as error:
        return Verified(location, 0, error.message)


async def _location(connection: RedisConnection, path: TinkerPath) -> str:
    location = await connection.commands.hget(keyspace.checkpoint(str(path)), "location")
    if location is None:
        raise NotFoundError(f"there is no checkpoint {path}", reason="CHECKPOINT_NOT_FOUND")
    return str(location.decode())


async def _named(connection: RedisConnection) -> list[str]:
    """The locations that the catalog names."""
    found = []
    async for key in connection.commands.scan_iter(match=keyspace.checkpoint("*"), count=_AT_ONCE):
        location = await connection.commands.hget(key, "location")
        if location is not None:
            found.append(location.decode())
    return found
