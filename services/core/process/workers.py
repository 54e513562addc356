"""Directory of live workers; the platform's capabilities are the union of their announcements.

An announcement is a heartbeat with an expiry: a worker that is gone disappears by itself, and no list of workers is
configured.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from services.core.errors import InvalidArgumentError, UnavailableError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import capability_pb2

HEARTBEAT_S = 2.0
EXPIRY_S = 10.0

KIND_NAMES = {job_pb2.WORKER_KIND_TRAINER: "trainer", job_pb2.WORKER_KIND_SAMPLER: "sampler"}
"""A worker kind as commands, messages and metrics name it."""


class WorkerDirectory:
    """Announcements of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def announce(self, status: job_pb2.WorkerStatus) -> None:
        """Announces a live worker; call it every `HEARTBEAT_S`."""
        pipeline = self._commands.pipeline(transaction=True)
        announcement = status.SerializeToString()
        pipeline.hset(keyspace.WORKERS, status.worker, announcement)
        pipeline.hset(keyspace.base_models(status.kind), status.base_model, announcement)
        pipeline.zadd(keyspace.WORKERS_EXPIRY, {status.worker: time.time() + EXPIRY_S})
        await pipeline.execute()

    async def withdraw(self, worker: str) -> None:
        """Removes a worker that stops."""
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.hdel(keyspace.WORKERS, worker)
        pipeline.zrem(keyspace.WORKERS_EXPIRY, worker)
        await pipeline.execute()

    async def live(self) -> list[job_pb2.WorkerStatus]:
        """The workers seen in the last `EXPIRY_S`; removes the others."""
        now = time.time()
        for gone in await self._commands.zrangebyscore(keyspace.WORKERS_EXPIRY, "-inf", now):
            await self.withdraw(gone.decode())
        announcements = await self._commands.hvals(keyspace.WORKERS)
        return [job_pb2.WorkerStatus.FromString(announcement) for announcement in announcements]

    async def serving(self, base_model: str, kind: job_pb2.WorkerKind.ValueType, field: str) -> job_pb2.WorkerStatus:
        """A live worker of `kind` for a base model.

        Raises:
            InvalidArgumentError: no worker has ever served it; names `field` and the base models that are served.
            UnavailableError: none of its workers is up at the moment.
        """
        live = [status for status in await self.live() if status.kind == kind]
        for status in live:
            if status.base_model == base_model:
                return status
        known = await self._commands.hkeys(keyspace.base_models(kind))
        if base_model.encode() in known:
            message = f"no {KIND_NAMES[kind]} for base model {base_model!r} is up at the moment; try again"
            raise UnavailableError(message, reason="NO_WORKER")
        served = ", ".join(sorted({repr(status.base_model) for status in live})) or "none at the moment"
        raise InvalidArgumentError.at(
            field,
            f"no {KIND_NAMES[kind]} serves {base_model!r}; base models served: {served}",
            reason="UNKNOWN_BASE_MODEL",
        )

    async def any_kind(self, base_model: str, field: str) -> job_pb2.WorkerStatus:
        """A worker of any kind that serves or has served a base model.

        Raises:
            InvalidArgumentError: none has.
        """
        for kind in KIND_NAMES:
            announcement = await self._commands.hget(keyspace.base_models(kind), base_model)
            if announcement is not None:
                return job_pb2.WorkerStatus.FromString(announcement)
        served = ", ".join(sorted({repr(status.base_model) for status in await self.live()})) or "none at the moment"
        message = f"{base_model!r} is not served; base models served: {served}"
        raise InvalidArgumentError.at(field, message, reason="UNKNOWN_BASE_MODEL")

    async def limits(self, base_model: str, kind: job_pb2.WorkerKind.ValueType) -> job_pb2.WorkerStatus:
        """The last announcement of a base model's workers of `kind`, also while none of them is up.

        Raises:
            UnavailableError: no worker has ever served it.
        """
        announcement = await self._commands.hget(keyspace.base_models(kind), base_model)
        if announcement is None:
            raise UnavailableError(
                f"no {KIND_NAMES[kind]} has served {base_model!r} yet; try again", reason="NO_WORKER"
            )
        return job_pb2.WorkerStatus.FromString(announcement)


def supported_models(workers: Iterable[job_pb2.WorkerStatus]) -> list[capability_pb2.SupportedModel]:
    """One entry a base model: the union over its workers, the smallest of their limits."""
    models: dict[str, capability_pb2.SupportedModel] = {}
    for status in workers:
        model = models.setdefault(
            status.base_model,
            capability_pb2.SupportedModel(
                model_name=status.base_model,
                max_context_length=status.max_context_length,
                vocab_size=status.vocab_size,
            ),
        )
        model.max_context_length = min(model.max_context_length, status.max_context_length)
        if status.kind == job_pb2.WORKER_KIND_TRAINER:
            model.trainable = True
            known = model.max_lora_rank or status.max_lora_rank
            model.max_lora_rank = min(known, status.max_lora_rank)
            loss_fns = sorted({*model.loss_fns, *status.loss_fns})
            del model.loss_fns[:]
            model.loss_fns.extend(loss_fns)
        else:
            model.sampleable = True
    return [models[name] for name in sorted(models)]
