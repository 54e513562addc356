"""Identity of a platform: one random id in its Redis and in its storage, which shows whether the two belong together.

A Redis that is empty, or another platform's, refers to nothing in the storage, so all of it would look like garbage.
The gateway writes the id at its start, first into Redis as a claim, then into the storage, and then confirms the claim:
a crash in between leaves a state that the next start completes.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

from services.core.errors import FailedPreconditionError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection, Write
from services.core.storage import checkpoint_store, snapshot_store
from services.core.storage.interface import Storage

STORED_AT = "identity"
"""Key of the id in the storage."""

_AT_ONCE = 1000


@dataclass(frozen=True)
class _Ids:
    """The ids that Redis and the storage have; "" means none."""

    in_redis: str
    in_storage: str

    is_confirmed: bool
    """Whether Redis knows that the storage has its id."""


class Identity:
    """The ids of one Redis server and one storage."""

    def __init__(self, connection: RedisConnection, storage: Storage) -> None:
        self._commands = connection.commands
        self._storage = storage

    async def establish(self) -> None:
        """Checks, and writes one id into Redis and the storage where it is missing.

        Raises:
            FailedPreconditionError: as `check`; nothing is written.
            ResourceExhaustedError, UnavailableError: the storage is full, or cannot be reached.
        """
        await self.check()
        await self._commands.hsetnx(keyspace.IDENTITY, "id", uuid.uuid4().hex)
        ids = await self._read()
        if not ids.in_storage:
            await asyncio.to_thread(self._storage.put, STORED_AT, f"{ids.in_redis}\n".encode())
            await self.check()  # a gateway of another Redis may have written at the same time
        await self._commands.hset(keyspace.IDENTITY, "confirmed", "1")

    async def check(self) -> None:
        """Checks that Redis and the storage belong together, as far as their ids and their content tell.

        Raises:
            FailedPreconditionError: REDIS_EMPTY if Redis has no runs and no checkpoints, but the storage is in use;
                STORAGE_OF_ANOTHER_REDIS if each of them belongs to another platform.
            UnavailableError: the storage cannot be reached.
        """
        ids = await self._read()
        if ids.in_storage:
            if ids.in_storage == ids.in_redis:
                return
            if ids.in_redis:
                raise _of_another_redis(f"its id is {ids.in_storage}, and that of this Redis {ids.in_redis}")
            if not await self._redis_has_data():
                raise _redis_empty(f"the storage has the id {ids.in_storage}")
            raise _of_another_redis(f"its id is {ids.in_storage}, and this Redis has none")
        if ids.is_confirmed:
            if await self._storage_has_data():
                raise _of_another_redis(f"it has data and no id, and the id of this Redis is {ids.in_redis}")
        elif not await self._redis_has_data() and await self._storage_has_data():
            raise _redis_empty("the storage has checkpoints or snapshots")

    async def check_recoverable(self) -> None:
        """Checks that the catalog of this Redis may be filled from the storage: it is the storage's, or has nothing.

        Raises:
            FailedPreconditionError: STORAGE_OF_ANOTHER_REDIS.
        """
        try:
            await self.check()
        except FailedPreconditionError as error:
            if error.reason != "REDIS_EMPTY":
                raise

    async def adoption(self) -> list[Write]:
        """The writes that give a Redis without an id that of the storage."""
        ids = await self._read()
        if ids.in_redis:
            return []
        if ids.in_storage:
            return [("HSET", keyspace.IDENTITY, "id", ids.in_storage, "confirmed", "1")]
        return [("HSET", keyspace.IDENTITY, "id", uuid.uuid4().hex)]

    async def _read(self) -> _Ids:
        redis_id, confirmed = await self._commands.hmget(keyspace.IDENTITY, "id", "confirmed")
        try:
            stored = await asyncio.to_thread(self._storage.get, STORED_AT)
        except FileNotFoundError:
            stored = b""
        return _Ids((redis_id or b"").decode(), stored.decode(errors="replace").strip(), confirmed is not None)

    async def _redis_has_data(self) -> bool:
        for pattern in (keyspace.run_meta("*"), keyspace.training_run("*"), keyspace.checkpoint("*")):
            async for _ in self._commands.scan_iter(match=pattern, count=_AT_ONCE):
                return True
        return False

    async def _storage_has_data(self) -> bool:
        """Whether runs have left anything; tokenizers do not count, because workers store them before any run."""

        def has_data() -> bool:
            roots = (checkpoint_store.ROOT, snapshot_store.ROOT)
            return any(next(iter(self._storage.directories(root)), None) is not None for root in roots)

        return await asyncio.to_thread(has_data)


def _redis_empty(evidence: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the storage belongs to another Redis or to one that was lost: this Redis has no runs and no checkpoints, but "
        f"{evidence}; restore the data of Redis, bring the checkpoints back with `tinker-platform storage recover`, or "
        "set --storage-url to another storage",
        reason="REDIS_EMPTY",
    )


def _of_another_redis(evidence: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the storage belongs to another Redis: {evidence}; set --redis-url to its Redis, or --storage-url to another "
        "storage",
        reason="STORAGE_OF_ANOTHER_REDIS",
    )
