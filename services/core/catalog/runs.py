"""Catalog of training runs and sampling sessions; `checkpoints` is that of the checkpoints.

Records are protobuf messages in Redis with their tenant beside them. A record of another tenant is NOT_FOUND.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from services.core.catalog.checkpoints import CheckpointCatalog
from services.core.catalog.pages import Page, PageRequest, read_page
from services.core.catalog.unnamed_weights import UnnamedWeights
from services.core.config import GatewaySettings
from services.core.errors import FailedPreconditionError, NotFoundError
from services.core.names import session_of
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection, Write
from services.core.retention import KEEP_FINISHED_MS, KEEP_IDLE_RUNS, KEEP_SESSIONS
from tinker_proto.path import CheckpointKind
from tinker_proto.v1 import checkpoint_pb2, sampling_pb2, training_pb2


class Catalog:
    """The catalog of one Redis server."""

    def __init__(self, connection: RedisConnection, settings: GatewaySettings | None = None) -> None:
        """
        Args:
            connection: to the Redis server.
            settings: with the limits of what a tenant adds; None for a process that adds what was accepted.
        """
        self._connection = connection
        self._commands = connection.commands
        self._settings = settings
        self.checkpoints = CheckpointCatalog(connection)
        self.unnamed_weights = UnnamedWeights(connection)

    async def add_run(self, tenant: str, run: training_pb2.TrainingRun) -> None:
        """Adds a run; adding it again keeps the first record.

        Raises:
            FailedPreconditionError: the tenant has too many.
        """
        await self.check_run(tenant, run.training_run_id)
        pipeline = self._commands.pipeline(transaction=True)
        for write in run_writes(tenant, run):
            pipeline.execute_command(*write)
        await pipeline.execute()

    async def check_run(self, tenant: str, run_id: str) -> None:
        """Refuses a new run of a tenant that has too many; raises as `add_run`."""
        if self._settings is None:
            return
        most = self._settings.max_training_runs_per_tenant
        key = keyspace.tenant_runs(tenant)
        pipeline = self._commands.pipeline(transaction=False)
        pipeline.zcard(key)
        pipeline.zscore(key, run_id)
        count, known = await pipeline.execute()
        if known is None and count >= most:
            message = f"tenant {tenant} has {count} training runs (max_training_runs_per_tenant: {most})"
            raise FailedPreconditionError(message, reason="TOO_MANY_TRAINING_RUNS")

    async def forget_idle_runs(self, tenants: Iterable[str]) -> list[str]:
        """Removes runs of these tenants that have no checkpoint and had no request for long; returns their ids."""
        forgotten = []
        for tenant in tenants:
            for name in await self._commands.zrange(keyspace.tenant_runs(tenant), 0, -1):
                run = name.decode()
                keys = [
                    keyspace.training_run(run),
                    keyspace.run_meta(run),
                    keyspace.run_own(run),
                    keyspace.run_checkpoints(run),
                    keyspace.tenant_runs(tenant),
                    keyspace.session_runs(session_of(run)),
                    keyspace.run_log(run),
                    keyspace.run_early(run),
                    keyspace.run_skipped(run),
                    keyspace.run_sources(run),
                    keyspace.run_metrics(run),
                    keyspace.inflight_weights(run),
                ]
                keep_ms = KEEP_IDLE_RUNS // timedelta(milliseconds=1)
                if await self._connection.run("forget_run", keys, [run, keep_ms]):
                    forgotten.append(run)
        return forgotten

    async def run(self, run_id: str, tenant: str) -> training_pb2.TrainingRun:
        """A run of `tenant` with its newest checkpoints.

        Raises:
            NotFoundError: there is none of this id, or it is another tenant's.
        """
        await self.run_record(run_id, tenant)
        (run,) = await self._runs([run_id])
        return run

    async def run_record(self, run_id: str, tenant: str) -> training_pb2.TrainingRun:
        """A run as it was created; raises as `run`."""
        owner, record = await self._commands.hmget(keyspace.training_run(run_id), "tenant", "record")
        if owner != tenant.encode():
            raise NotFoundError(f"there is no training run {run_id[:200]!r}", reason="TRAINING_RUN_NOT_FOUND")
        return training_pb2.TrainingRun.FromString(record)

    async def run_page(self, tenant: str, wanted: PageRequest) -> tuple[list[training_pb2.TrainingRun], Page]:
        """A page of a tenant's runs."""
        page = await read_page(self._connection, keyspace.tenant_runs(tenant), wanted)
        return await self._runs(page.names), page

    async def checkpoint_page(
        self, tenant: str, run_id: str, wanted: PageRequest
    ) -> tuple[list[checkpoint_pb2.Checkpoint], Page]:
        """A page of a tenant's checkpoints, or of those of one run of theirs; raises as `run`."""
        if not run_id:
            return await self.checkpoints.page(keyspace.tenant_checkpoints(tenant), wanted)
        await self.run_record(run_id, tenant)
        return await self.checkpoints.page(keyspace.run_checkpoints(run_id), wanted)

    async def add_sampling_session(
        self, tenant: str, sampling: sampling_pb2.SamplingSession, location: str, follows: str = ""
    ) -> None:
        """Adds a sampling session; adding it again keeps the first record.

        One that `follows` a run samples from the run's newest inflight weights instead of `location` alone.

        Raises:
            FailedPreconditionError: the tenant has too many.
        """
        name = sampling.sampling_session_id
        most = self._settings.max_sampling_sessions_per_tenant if self._settings is not None else sys.maxsize
        keys = [
            keyspace.sampling_session(name),
            keyspace.session_samplings(session_of(name)),
            keyspace.tenant_samplings(tenant),
        ]
        arguments: list[str | bytes | int] = [keyspace.PREFIX, name, tenant, location, sampling.SerializeToString()]
        arguments += [follows, most]
        if await self._connection.run("open_sampling", keys, arguments) == b"full":
            message = (
                f"tenant {tenant} has {most} sampling sessions of the last {KEEP_SESSIONS.days} days "
                f"(max_sampling_sessions_per_tenant: {most}); use one for more requests, or end sessions"
            )
            raise FailedPreconditionError(message, reason="TOO_MANY_SAMPLING_SESSIONS")

    async def sampling_session(self, sampling_session_id: str, tenant: str) -> tuple[sampling_pb2.SamplingSession, str]:
        """A sampling session of `tenant`, and the location of its pinned checkpoint ("" for the base model).

        Raises:
            NotFoundError: there is none of this id, or it is another tenant's.
        """
        pipeline = self._commands.pipeline(transaction=False)
        pipeline.hgetall(keyspace.sampling_session(sampling_session_id))
        pipeline.zadd(keyspace.tenant_samplings(tenant), {sampling_session_id: int(time.time() * 1000)}, xx=True)
        pipeline.pexpire(keyspace.sampling_session(sampling_session_id), KEEP_SESSIONS)
        record, *_ = await pipeline.execute()
        if record.get(b"tenant") != tenant.encode():
            message = f"there is no sampling session {sampling_session_id[:200]!r}"
            raise NotFoundError(message, reason="SAMPLING_SESSION_NOT_FOUND")
        sampling, location = sampling_pb2.SamplingSession.FromString(record[b"record"]), record[b"location"].decode()
        if b"follows" in record:
            newest = await self._commands.zrevrange(keyspace.inflight_weights(record[b"follows"].decode()), 0, 0)
            if newest:
                location, _, sampling.model_path = newest[0].decode().partition(" ")
        return sampling, location

    async def publish_inflight(self, run_id: str, seq_id: int, location: str, path: str) -> None:
        """Makes the inflight sampling sessions of a run sample from these weights, unless they have newer ones."""
        key = keyspace.inflight_weights(run_id)
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.zadd(key, {f"{location} {path}": seq_id})
        pipeline.zremrangebyrank(key, 0, -2)
        await pipeline.execute()

    async def count_merge(self, tenant: str, operation: str) -> None:
        """Counts a merge of a tenant while its files may be there.

        Raises:
            FailedPreconditionError: the tenant has too many.
        """
        most = self._settings.max_merges_per_tenant if self._settings is not None else sys.maxsize
        arguments: list[str | bytes | int] = [operation, KEEP_FINISHED_MS, most]
        if not await self._connection.run("count_merge", [keyspace.merges(tenant)], arguments):
            message = f"tenant {tenant} has queued {most} merges within a day (max_merges_per_tenant: {most})"
            raise FailedPreconditionError(message, reason="TOO_MANY_MERGES")

    async def count_client(self, sampling_session_id: str) -> int:
        """The number of another client of a sampling session, from 1."""
        return int(await self._commands.hincrby(keyspace.sampling_session(sampling_session_id), "clients", 1))

    async def _runs(self, run_ids: Sequence[str]) -> list[training_pb2.TrainingRun]:
        """Runs with their last request and newest checkpoints, in one round trip."""
        await self.checkpoints.remove_expired()
        pipeline = self._commands.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.hget(keyspace.training_run(run_id), "record")
            pipeline.hget(keyspace.run_meta(run_id), "last_request")
            pipeline.zrevrange(keyspace.run_checkpoints_of_kind(run_id, CheckpointKind.WEIGHTS), 0, 0)
            pipeline.zrevrange(keyspace.run_checkpoints_of_kind(run_id, CheckpointKind.SAMPLER_WEIGHTS), 0, 0)
        runs = []
        for record, last_request_ms, training, sampler in _in_groups(await pipeline.execute(), 4):
            run = training_pb2.TrainingRun.FromString(record)
            run.last_request_time.FromMilliseconds(int(last_request_ms or run.create_time.ToMilliseconds()))
            run.last_checkpoint = training[0].decode() if training else ""
            run.last_sampler_checkpoint = sampler[0].decode() if sampler else ""
            runs.append(run)
        return runs


def _in_groups(replies: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The replies of one pipeline, `size` at a time."""
    for start in range(0, len(replies), size):
        yield replies[start : start + size]


def run_writes(tenant: str, run: training_pb2.TrainingRun) -> list[Write]:
    """The writes that add a run; repeated, they keep the first record."""
    run_id, now = run.training_run_id, str(time.time())
    key = keyspace.training_run(run_id)
    return [
        ("HSETNX", key, "tenant", tenant),
        ("HSETNX", key, "record", run.SerializeToString()),
        ("ZADD", keyspace.tenant_runs(tenant), "NX", now, run_id),
        ("ZADD", keyspace.session_runs(session_of(run_id)), "NX", now, run_id),
    ]
