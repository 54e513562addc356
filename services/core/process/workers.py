"""Directory of live workers; the platform's capabilities are the union of their announcements.

An announcement is a heartbeat with an expiry: a worker that is gone disappears by itself, and no list of workers is
configured.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from services.core.base_model_names import matching
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
        pipeline.hset(keyspace.base_models(status.kind), mapping=dict.fromkeys(names_of(status), announcement))
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

    async def contradicting(
        self, status: job_pb2.WorkerStatus, accepted: Collection[str]
    ) -> job_pb2.WorkerStatus | None:
        """A live worker that calls something else by a name of this worker's base model; None if there is none.

        Args:
            status: what the worker is about to announce.
            accepted: fingerprints of base models that count as its own.
        """
        for other in await self.live():
            fingerprints = {status.base_fingerprint, other.base_fingerprint} - {""}
            differs = len(fingerprints) == 2 and other.base_fingerprint not in accepted
            share_names = not set(names_of(status)).isdisjoint(names_of(other))
            if share_names and (differs or status.base_model != other.base_model):
                return other
        return None

    async def names(self) -> list[str]:
        """Names of the workers seen in the last `EXPIRY_S`."""
        return [
            name.decode() for name in await self._commands.zrangebyscore(keyspace.WORKERS_EXPIRY, time.time(), "inf")
        ]

    async def serving(self, base_model: str, kind: job_pb2.WorkerKind.ValueType, field: str) -> job_pb2.WorkerStatus:
        """A live worker of `kind` for a base model.

        Raises:
            InvalidArgumentError: no worker has ever served it; names `field` and the base models that are served.
            UnavailableError: none of its workers is up at the moment.
        """
        live = [status for status in await self.live() if status.kind == kind]
        named = {name: status for status in live for name in names_of(status)}
        if (found := matching(base_model, named)) is not None:
            return named[found]
        if await self._last(base_model, kind) is not None:
            message = f"no {KIND_NAMES[kind]} for base model {base_model!r} is up at the moment; try again"
            raise UnavailableError(message, reason="NO_WORKER")
        served = _served(live)
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
            if (status := await self._last(base_model, kind)) is not None:
                return status
        message = f"{base_model!r} is not served; base models served: {_served(await self.live())}"
        raise InvalidArgumentError.at(field, message, reason="UNKNOWN_BASE_MODEL")

    async def limits(self, base_model: str, kind: job_pb2.WorkerKind.ValueType) -> job_pb2.WorkerStatus:
        """The last announcement of a base model's workers of `kind`, also while none of them is up.

        Raises:
            UnavailableError: no worker has ever served it.
        """
        status = await self._last(base_model, kind)
        if status is None:
            raise UnavailableError(
                f"no {KIND_NAMES[kind]} has served {base_model!r} yet; try again", reason="NO_WORKER"
            )
        return status

    async def is_same(self, one: str, other: str) -> bool:
        """Whether two names are of one base model."""
        if one == other:
            return True
        for kind in KIND_NAMES:
            statuses = [await self._last(name, kind) for name in (one, other)]
            if None not in statuses and len({status.base_model for status in statuses if status is not None}) == 1:
                return True
        return False

    async def _last(self, base_model: str, kind: job_pb2.WorkerKind.ValueType) -> job_pb2.WorkerStatus | None:
        """The last announcement of a base model's workers of `kind`; None if no worker has ever served it."""
        key = keyspace.base_models(kind)
        announcement = await self._commands.hget(key, base_model)
        if announcement is None:
            known = [name.decode() for name in await self._commands.hkeys(key)]
            if (found := matching(base_model, known)) is not None:
                announcement = await self._commands.hget(key, found)
        return None if announcement is None else job_pb2.WorkerStatus.FromString(announcement)


def names_of(status: job_pb2.WorkerStatus) -> tuple[str, ...]:
    """The names of a worker's base model, the one that it is recorded under first."""
    return (status.base_model, *status.aliases)


def registered(name: str, status: job_pb2.WorkerStatus) -> str:
    """The name of a worker's base model that a request means by `name`."""
    return matching(name, names_of(status)) or status.base_model


def _served(workers: Iterable[job_pb2.WorkerStatus]) -> str:
    """The names of base models, for messages."""
    return ", ".join(sorted({repr(name) for status in workers for name in names_of(status)})) or "none at the moment"


def supported_models(workers: Iterable[job_pb2.WorkerStatus]) -> list[capability_pb2.SupportedModel]:
    """One entry a name of a base model: the union over its workers, the smallest of their limits."""
    models: dict[str, capability_pb2.SupportedModel] = {}
    for name, status in [(name, worker) for worker in workers for name in names_of(worker)]:
        model = models.setdefault(
            name,
            capability_pb2.SupportedModel(
                model_name=name,
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
