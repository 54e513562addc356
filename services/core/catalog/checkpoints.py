"""Catalog of checkpoints: owner, readers, expiry, and the location of the files.

A checkpoint is listed exactly when its save has succeeded: one script does both. Once it has expired, no call finds it.
Its files stay while their location is pinned: see services.core.catalog.pins. Every tenant can read a published
checkpoint and only its owner can change it; an unpublished one does not exist for other tenants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.core.catalog.pages import Page, PageRequest, read_page
from services.core.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection, Write
from tinker_proto.path import CheckpointKind, TinkerPath
from tinker_proto.v1 import checkpoint_pb2

_REMOVED_AT_ONCE = 1000


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint and the location of its files."""

    checkpoint: checkpoint_pb2.Checkpoint
    location: str


@dataclass(frozen=True)
class StorageLimits:
    """What a tenant may have at most."""

    stored_bytes: int
    """Bytes of checkpoints whose files are there, also of deleted ones that are still used."""

    checkpoints: int


class CheckpointCatalog:
    """The checkpoints of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def get(self, path: TinkerPath, tenant: str) -> StoredCheckpoint:
        """A checkpoint that `tenant` may read; the two-part form of a path means the only checkpoint of that name.

        Raises:
            NotFoundError: there is none at this path for this tenant.
            InvalidArgumentError: a two-part path matches both a training and a sampler checkpoint.
        """
        kinds = (CheckpointKind.WEIGHTS, CheckpointKind.SAMPLER_WEIGHTS) if path.kind is None else (path.kind,)
        pipeline = self._connection.commands.pipeline(transaction=False)
        pipeline.time()
        for kind in kinds:
            pipeline.hgetall(keyspace.checkpoint(str(TinkerPath(path.training_run_id, kind, path.name))))
        (seconds, microseconds), *records = await pipeline.execute()
        now_ms = seconds * 1000 + microseconds // 1000
        found = [record for record in records if _is_there(record, now_ms) and _may_read(record, tenant)]
        if not found:
            raise _missing(path)
        if len(found) > 1:
            kinds_of_it = f"weights/{path.name} or sampler_weights/{path.name}"
            raise InvalidArgumentError.must_be(
                "tinker_path", f"unambiguous: {kinds_of_it}", str(path), reason="BAD_TINKER_PATH"
            )
        return _stored(found[0])

    async def check_space(
        self, tenant: str, limits: StorageLimits, new_bytes: int = 0, replaced: str = "", *, is_listed: bool = True
    ) -> None:
        """Refuses a checkpoint of `new_bytes` where its tenant would have more than it may.

        Args:
            tenant: the owner.
            limits: what it may have.
            new_bytes: bytes of the new checkpoint's files; 0 if they are not known yet.
            replaced: location of the checkpoint that it replaces, whose bytes do not count.
            is_listed: whether it counts as a checkpoint; unnamed weights do not.

        Raises:
            FailedPreconditionError: names the setting.
        """
        pipeline = self._connection.commands.pipeline(transaction=False)
        pipeline.hgetall(keyspace.stored_sizes(tenant))
        pipeline.zcard(keyspace.tenant_checkpoints(tenant))
        sizes, count = await pipeline.execute()
        used = sum(map(int, sizes.values())) - int(sizes.get(replaced.encode(), 0))
        if used + max(new_bytes, 1) > limits.stored_bytes:
            raise FailedPreconditionError(
                f"tenant {tenant} has {used} bytes of checkpoints, and with this one more than it may "
                f"(max_stored_bytes_per_tenant: {limits.stored_bytes}); delete checkpoints, or let them expire",
                reason="STORAGE_QUOTA",
            )
        if is_listed and count >= limits.checkpoints and not replaced:
            raise FailedPreconditionError(
                f"tenant {tenant} has {count} checkpoints (max_checkpoints_per_tenant: {limits.checkpoints}); "
                "delete some, or let them expire",
                reason="TOO_MANY_CHECKPOINTS",
            )

    async def stored_sizes(self, tenant: str) -> dict[str, int]:
        """Bytes of the files of a tenant's weights that are stored, by location."""
        sizes = await self._connection.commands.hgetall(keyspace.stored_sizes(tenant))
        return {location.decode(): int(size) for location, size in sizes.items()}

    async def location_of(self, path: TinkerPath) -> str:
        """Location of the files that a path names, of any tenant and even if expired; "" if there is none."""
        location = await self._connection.commands.hget(keyspace.checkpoint(str(path)), "location")
        return (location or b"").decode()

    async def page(self, index: str, wanted: PageRequest) -> tuple[list[checkpoint_pb2.Checkpoint], Page]:
        """A page of an index of checkpoints, whose owner the caller has checked."""
        await self.remove_expired()
        page = await read_page(self._connection, index, wanted)
        pipeline = self._connection.commands.pipeline(transaction=False)
        for name in page.names:
            pipeline.hgetall(keyspace.checkpoint(name))
        return [_stored(record).checkpoint for record in await pipeline.execute() if record], page

    async def pin(self, path: TinkerPath, tenant: str, pinned_by: str) -> StoredCheckpoint:
        """Pins the files of a checkpoint that `tenant` may read, for a session or an operation.

        Raises:
            NotFoundError: there is none at this path for this tenant.
        """
        arguments = [tenant, pinned_by, keyspace.PINS]
        fields = await self._connection.run("pin_checkpoint", [keyspace.checkpoint(str(path))], arguments)
        return _stored(_changed(fields, path))

    async def set_public(self, path: TinkerPath, tenant: str, *, public: bool) -> checkpoint_pb2.Checkpoint:
        """Publishes or unpublishes a checkpoint; raises as `remove`."""
        return await self._change(path, tenant, "public", "1" if public else "")

    async def set_lifetime(self, path: TinkerPath, tenant: str, seconds: int | None) -> checkpoint_pb2.Checkpoint:
        """Sets a checkpoint to expire after this many seconds, or never; raises as `remove`."""
        return await self._change(path, tenant, "expires", "" if seconds is None else str(seconds * 1000))

    async def remove(self, path: TinkerPath, tenant: str) -> StoredCheckpoint:
        """Removes a checkpoint from the catalog and marks its files for deletion.

        Raises:
            NotFoundError: there is none at this path for this tenant.
            PermissionDeniedError: another tenant has published it.
        """
        path = await self._full(path, tenant)
        keys, prefix = [keyspace.EXPIRING, keyspace.UNREFERENCED], keyspace.PREFIX
        fields = await self._connection.run("remove_checkpoints", keys, [prefix, str(path), tenant, 1])
        return _stored(_changed(fields, path))

    async def remove_expired(self) -> None:
        """Removes expired checkpoints from the catalog and marks their files for deletion."""
        keys, prefix = [keyspace.EXPIRING, keyspace.UNREFERENCED], keyspace.PREFIX
        while await self._connection.run("remove_checkpoints", keys, [prefix, "", "", _REMOVED_AT_ONCE]):
            pass

    async def _full(self, path: TinkerPath, tenant: str) -> TinkerPath:
        if path.kind is not None:
            return path
        return TinkerPath.parse((await self.get(path, tenant)).checkpoint.tinker_path)

    async def _change(
        self, path: TinkerPath, tenant: str, field: Literal["public", "expires"], value: str
    ) -> checkpoint_pb2.Checkpoint:
        path = await self._full(path, tenant)
        keys = [keyspace.checkpoint(str(path)), keyspace.EXPIRING]
        fields = await self._connection.run("change_checkpoint", keys, [tenant, str(path), field, value])
        return _stored(_changed(fields, path)).checkpoint


def checkpoint_writes(tenant: str, stored: StoredCheckpoint, replaced: str) -> list[Write]:
    """The writes that add a checkpoint, made visible with the result of its save.

    `replaced` is the location that its path has named so far, "" for none; its files are marked for deletion.
    """
    checkpoint, path = stored.checkpoint, stored.checkpoint.tinker_path
    key, when = keyspace.checkpoint(path), checkpoint.time.ToMilliseconds()
    run, kind = checkpoint.training_run_id, checkpoint.checkpoint_id.partition("/")[0]
    writes: list[Write] = [
        ("DEL", key),
        ("HSET", key, "tenant", tenant, "record", checkpoint.SerializeToString(), "location", stored.location),
        ("ZADD", keyspace.tenant_checkpoints(tenant), when, path),
        ("ZADD", keyspace.run_checkpoints(run), when, path),
        ("ZADD", keyspace.run_checkpoints_of_kind(run, kind), when, path),
        ("ZREM", keyspace.EXPIRING, path),
        ("HSET", keyspace.stored_sizes(tenant), stored.location, checkpoint.size_bytes),
    ]
    if checkpoint.HasField("expires_at"):
        expires = checkpoint.expires_at.ToMilliseconds()
        writes += [("HSET", key, "expires", expires), ("ZADD", keyspace.EXPIRING, expires, path)]
    if replaced and replaced != stored.location:
        writes.append(("ZADD", keyspace.UNREFERENCED, when, replaced))
    return writes


def pin_write(location: str, pinned_by: str) -> Write:
    """The write that pins files, as `CheckpointCatalog.pin` does."""
    return ("SADD", keyspace.PINS + location, pinned_by)


def _is_there(record: Mapping[bytes, bytes], now_ms: int) -> bool:
    return bool(record) and (b"expires" not in record or int(record[b"expires"]) > now_ms)


def _may_read(record: Mapping[bytes, bytes], tenant: str) -> bool:
    return record[b"tenant"] == tenant.encode() or b"public" in record


def _stored(record: Mapping[bytes, bytes]) -> StoredCheckpoint:
    checkpoint = checkpoint_pb2.Checkpoint.FromString(record[b"record"])
    checkpoint.public = b"public" in record
    checkpoint.ClearField("expires_at")
    if b"expires" in record:
        checkpoint.expires_at.FromMilliseconds(int(record[b"expires"]))
    return StoredCheckpoint(checkpoint, record[b"location"].decode())


def _changed(reply: Any, path: TinkerPath) -> dict[bytes, bytes]:
    """The fields that a script has returned; raises as `CheckpointCatalog.remove`."""
    if reply == b"missing":
        raise _missing(path)
    if reply == b"denied":
        message = f"checkpoint {path} belongs to another tenant; only its owner can change it"
        raise PermissionDeniedError(message, reason="NOT_THE_OWNER")
    fields: Sequence[bytes] = reply
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _missing(path: TinkerPath) -> NotFoundError:
    return NotFoundError(f"there is no checkpoint {path}", reason="CHECKPOINT_NOT_FOUND")
