"""What exists and whose it is: training runs, sampling sessions, checkpoints.

Records are protobuf messages in Redis with their tenant beside them. Whatever belongs to another tenant does not exist
here: NOT_FOUND. A checkpoint is in the catalog exactly when its save operation has succeeded: both are one script.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.core import keyspace
from services.core.connection import RedisConnection
from services.core.errors import NotFoundError
from services.core.run_log import Write
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, sampling_pb2, training_pb2


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint and where its files are."""

    checkpoint: checkpoint_pb2.Checkpoint
    location: str


@dataclass(frozen=True)
class Page:
    """Paths or ids of one page of a listing, newest first."""

    names: Sequence[str]
    next_page_token: str
    total_size: int


class Catalog:
    """The catalog of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def add_run(self, tenant: str, run: training_pb2.TrainingRun) -> None:
        """Enters a run; entering it again keeps the first record."""
        key = keyspace.training_run(run.training_run_id)
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.hsetnx(key, "tenant", tenant)
        pipeline.hsetnx(key, "record", run.SerializeToString())
        pipeline.zadd(keyspace.tenant_runs(tenant), {run.training_run_id: time.time()}, nx=True)
        await pipeline.execute()

    async def run(self, run_id: str, tenant: str) -> training_pb2.TrainingRun:
        """A run of `tenant`.

        Raises:
            NotFoundError: there is none of this id, or it is another tenant's.
        """
        run = await self._run_record(run_id, tenant)
        last_request_ms = await self._commands.hget(keyspace.run_meta(run_id), "last_request")
        run.last_request_time.FromMilliseconds(int(last_request_ms or run.create_time.ToMilliseconds()))
        return run

    async def base_model(self, run_id: str, tenant: str) -> str:
        """The base model of a run of `tenant`; raises as `run`."""
        return (await self._run_record(run_id, tenant)).base_model

    async def run_page(self, tenant: str, size: int, start: int) -> Page:
        """Ids of a tenant's runs."""
        return await self._page(keyspace.tenant_runs(tenant), size, start)

    async def add_sampling_session(self, tenant: str, sampling: sampling_pb2.SamplingSession, location: str) -> None:
        """Enters a sampling session; entering it again keeps the first record."""
        key = keyspace.sampling_session(sampling.sampling_session_id)
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.hsetnx(key, "tenant", tenant)
        pipeline.hsetnx(key, "location", location)
        pipeline.hsetnx(key, "record", sampling.SerializeToString())
        await pipeline.execute()

    async def sampling_session(self, sampling_session_id: str, tenant: str) -> tuple[sampling_pb2.SamplingSession, str]:
        """A sampling session of `tenant`, and the location of its pinned checkpoint ("" for the base model).

        Raises:
            NotFoundError: there is none of this id, or it is another tenant's.
        """
        record = await self._commands.hgetall(keyspace.sampling_session(sampling_session_id))
        if record.get(b"tenant") != tenant.encode():
            message = f"there is no sampling session {sampling_session_id[:200]!r}"
            raise NotFoundError(message, reason="SAMPLING_SESSION_NOT_FOUND")
        return sampling_pb2.SamplingSession.FromString(record[b"record"]), record[b"location"].decode()

    async def checkpoint(self, path: TinkerPath, tenant: str) -> StoredCheckpoint:
        """A checkpoint of `tenant`.

        Raises:
            NotFoundError: there is none at this path, or it is another tenant's.
        """
        record = await self._commands.hgetall(keyspace.checkpoint(str(path)))
        if record.get(b"tenant") != tenant.encode():
            raise NotFoundError(f"there is no checkpoint {path}", reason="CHECKPOINT_NOT_FOUND")
        return _stored(record)

    async def checkpoint_page(
        self, tenant: str, run_id: str, size: int, start: int
    ) -> tuple[list[checkpoint_pb2.Checkpoint], Page]:
        """A tenant's checkpoints, or one run's (whose tenant the caller has checked)."""
        index = keyspace.run_checkpoints(run_id) if run_id else keyspace.tenant_checkpoints(tenant)
        page = await self._page(index, size, start)
        pipeline = self._commands.pipeline(transaction=False)
        for name in page.names:
            pipeline.hgetall(keyspace.checkpoint(name))
        return [_stored(record).checkpoint for record in await pipeline.execute() if record], page

    async def remove_checkpoint(self, path: TinkerPath, tenant: str) -> None:
        """Takes a checkpoint out of the catalog; its files are the caller's to delete."""
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.delete(keyspace.checkpoint(str(path)))
        pipeline.zrem(keyspace.tenant_checkpoints(tenant), str(path))
        pipeline.zrem(keyspace.run_checkpoints(path.training_run_id), str(path))
        await pipeline.execute()

    async def _run_record(self, run_id: str, tenant: str) -> training_pb2.TrainingRun:
        owner, record = await self._commands.hmget(keyspace.training_run(run_id), "tenant", "record")
        if owner != tenant.encode():
            raise NotFoundError(f"there is no training run {run_id[:200]!r}", reason="TRAINING_RUN_NOT_FOUND")
        return training_pb2.TrainingRun.FromString(record)

    async def _page(self, index: str, size: int, start: int) -> Page:
        total = await self._commands.zcard(index)
        names = await self._commands.zrevrange(index, start, start + size - 1)
        end = start + len(names)
        return Page([name.decode() for name in names], str(end) if end < total else "", total)


def checkpoint_writes(tenant: str, stored: StoredCheckpoint) -> list[Write]:
    """The writes that enter a checkpoint, to be made visible with the result of its save."""
    checkpoint, path = stored.checkpoint, stored.checkpoint.tinker_path
    key, when = keyspace.checkpoint(path), checkpoint.time.ToMilliseconds()
    return [
        ("HSET", key, "tenant", tenant, "record", checkpoint.SerializeToString(), "location", stored.location),
        ("ZADD", keyspace.tenant_checkpoints(tenant), when, path),
        ("ZADD", keyspace.run_checkpoints(checkpoint.training_run_id), when, path),
    ]


def _stored(record: Mapping[bytes, bytes]) -> StoredCheckpoint:
    return StoredCheckpoint(checkpoint_pb2.Checkpoint.FromString(record[b"record"]), record[b"location"].decode())
