"""The sampler's asyncio side: takes jobs while there are free slots, steps the engine, reports results.

- `_take` takes jobs from the queue: as many as fit while there are free slots, and when there are none those of tenants
  that wait for nothing yet, to which the engine gives turns. `_keep` renews them there and takes over those of samplers
  that died.
- `_step` steps the engine until it is idle; `_listen_for_cancelled` drops jobs that were cancelled, and
  `_listen_for_returned` has tokens published again whose caller has come back.
- The publisher and `_report` send streamed tokens and results, so that no step waits for Redis.
- A job that cannot start ends with an error like any other that fails.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from google.protobuf.message import Message

from services.core.errors import InternalError, PlatformError
from services.core.process.metrics import CACHED_PROMPT_TOKENS, GENERATED_TOKENS, OPERATIONS, PROMPT_TOKENS
from services.core.queue.connection import TRANSIENT_ERRORS
from services.core.queue.liveness import Liveness
from services.core.queue.retry import until_reached
from services.core.queue.sample_queue import SampleEntry
from services.sampler.convert import to_response
from services.sampler.engine.interface import SamplerEngine
from services.sampler.engine_thread import EngineThread
from services.sampler.job_reader import UNREAD, Generation, JobReader, Merge, Refusal
from services.sampler.merge_jobs import MergeJobs
from services.sampler.publisher import Publisher
from services.sampler.request import Finished, GenerationResult
from services.sampler.stores import SamplerStores
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import data_pb2, sampling_pb2

REPORTED_AT_ONCE = 64
LOOK_EVERY_S = 0.02
"""Shortest time between two looks for newcomers, so that a flood of requests does not make a flood of looks."""

_log = structlog.get_logger(__name__)


@dataclass
class _RunningJob:
    """A job that this sampler has taken and not reported."""

    entry: SampleEntry
    kind: str = UNREAD
    """The job's field of the request's oneof, once it is read."""

    targets: data_pb2.Tensor | None = None
    """As Generation.targets."""


class SamplerWorker:
    """Serves one base model's sampling queue with one engine.

    Args:
        worker: the process's name.
        engine: the engine; only `run` calls it.
        stores: what it reads and writes.
        liveness: whether it may take over the jobs of others.
        lease_s: how long a sampler may be silent before others take its jobs over.
    """

    def __init__(
        self, worker: str, engine: SamplerEngine, stores: SamplerStores, liveness: Liveness, *, lease_s: float
    ) -> None:
        self._worker = worker
        self._base_model = engine.info.base_model
        self._aliases = engine.info.aliases
        self._most_waiting = engine.info.max_sequences
        self._may_take = asyncio.Event()
        """Set when there may be something to take without free slots."""

        self._engine = EngineThread(engine, self._may_take.set)
        self._queues = stores.queues
        self._operations = stores.operations
        self._reader = JobReader(engine, stores.queues, stores.checkpoints)
        self._merges = MergeJobs(engine, stores.checkpoints, stores.exports)
        self._tokens = stores.tokens
        self._publisher = Publisher(stores.tokens)
        self._liveness = liveness
        self._lease_s = lease_s
        self._tasks = asyncio.TaskGroup()
        self._jobs: dict[str, _RunningJob] = {}
        """By operation."""

        self._has_work = asyncio.Event()
        self._ended: list[Finished] = []
        """Results that are not reported yet."""

        self._has_ended = asyncio.Event()

    @property
    def sequences_used(self) -> int:
        """Sequences that were running when the engine was last called."""
        return self._engine.running_sequences

    async def run(self) -> None:
        """Serves until cancelled; what is unfinished then is taken over by another sampler."""
        try:
            await self._engine.start()
            await until_reached(lambda: self._queues.join(self._base_model))
            await until_reached(lambda: self._queues.adopt(self._base_model, self._aliases))
            position = await until_reached(self._operations.cancelled_position)
            returned = await until_reached(self._tokens.asked_position)
            wake = await until_reached(lambda: self._queues.wake_position(self._base_model))
            async with self._tasks as tasks:
                tasks.create_task(self._liveness.watch())
                tasks.create_task(self._take())
                tasks.create_task(self._listen_for_jobs(wake))
                tasks.create_task(self._keep())
                tasks.create_task(self._step())
                tasks.create_task(self._listen_for_cancelled(position))
                tasks.create_task(self._listen_for_returned(returned))
                tasks.create_task(self._publisher.run())
                tasks.create_task(self._report())
        finally:
            self._engine.close()

    async def _take(self) -> None:
        while True:
            self._may_take.clear()
            try:
                if free := self._engine.free_sequences:
                    taken = await self._queues.take(self._worker, self._base_model, free=free, block_ms=1000)
                else:
                    taken = await self._take_newcomers()
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.5)
                continue
            await self._start(taken)
            if not taken and not free:
                await self._may_take.wait()

    async def _take_newcomers(self) -> list[SampleEntry]:
        waiting = self._engine.waiting_tenants
        most = self._most_waiting - len(waiting)
        return await self._queues.take_newcomers(self._worker, self._base_model, waiting_tenants=waiting, most=most)

    async def _listen_for_jobs(self, position: str) -> None:
        while True:
            try:
                position = await self._queues.woken_after(self._base_model, position)
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.5)
            self._may_take.set()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _keep(self) -> None:
        lease_ms = int(self._lease_s * 1000)
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                kept = [job.entry for job in self._jobs.values()]
                await self._queues.keep(self._worker, self._base_model, kept)
                await self._queues.adopt(self._base_model, self._aliases)
                free = self._engine.free_sequences
                if free and self._liveness.is_steady:
                    orphans = await self._queues.take_over(self._worker, self._base_model, idle_ms=lease_ms, count=free)
                    await self._start([entry for entry in orphans if entry.operation not in self._jobs])
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))

    async def _listen_for_cancelled(self, position: str) -> None:
        while True:
            try:
                position, names = await self._operations.cancelled_after(position)
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.5)
                continue
            for name in names:
                await self._cancel(name)

    async def _listen_for_returned(self, position: str) -> None:
        while True:
            try:
                position, names = await self._tokens.asked_after(position)
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.5)
                continue
            for name in names:
                self._publisher.publish_again(name)

    async def _cancel(self, name: str) -> None:
        """Frees what a job holds; its operation has ended already."""
        job = self._jobs.pop(name, None)
        self._publisher.forget(name)
        if job is not None:
            self._merges.cancel(name)
            await self._engine.cancel(name)
            await until_reached(lambda: self._queues.drop(self._base_model, job.entry))

    async def _start(self, entries: list[SampleEntry]) -> None:
        """Begins jobs; those for the engine reach it together, between the same two steps."""
        self._jobs |= {entry.operation: _RunningJob(entry) for entry in entries}
        requests = []
        for entry, content in zip(entries, await asyncio.gather(*map(self._read, entries)), strict=True):
            job = self._jobs.get(entry.operation)
            if content is None or job is None:
                continue  # it has its result already, or was cancelled meanwhile
            job.kind = content.kind
            match content:
                case Generation():
                    job.targets = content.targets
                    requests.append(content.request)
                    PROMPT_TOKENS.inc(len(content.request.prompt))
                case Merge():
                    self._tasks.create_task(self._merge(content.job))
                case Refusal():
                    self._end([Finished(entry.operation, content.error)])
        if requests:
            self._end(await self._engine.submit(requests))
            self._has_work.set()

    async def _read(self, entry: SampleEntry) -> Generation | Merge | Refusal | None:
        """Marks a job as begun and reads it; None if it has its result already."""
        if await until_reached(lambda: self._queues.begin(self._worker, entry)):
            return await self._reader.read(entry)
        self._jobs.pop(entry.operation, None)
        await until_reached(lambda: self._queues.drop(self._base_model, entry))
        return None

    async def _merge(self, job: job_pb2.Job) -> None:
        await self._complete(job.operation, await self._merges.run(job))

    async def _step(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            idle = False
            while not idle:
                step = await self._engine.step()
                self._publisher.add(delta for delta in step.deltas if delta.name in self._jobs)
                self._end(step.finished)
                idle = step.idle

    def _end(self, finished: list[Finished]) -> None:
        """Leaves results to `_report`, so that the next step need not wait for Redis."""
        self._ended += finished
        if finished:
            self._has_ended.set()

    async def _report(self) -> None:
        while True:
            await self._has_ended.wait()
            self._has_ended.clear()
            while self._ended:
                ended, self._ended = self._ended[:REPORTED_AT_ONCE], self._ended[REPORTED_AT_ONCE:]
                await asyncio.gather(*(self._complete(end.name, end.outcome) for end in ended))

    async def _complete(self, name: str, outcome: GenerationResult | Message | PlatformError) -> None:
        job = self._jobs.get(name)
        self._publisher.forget(name)
        if job is None:
            return  # cancelled meanwhile
        if isinstance(outcome, GenerationResult):
            outcome = await _response(job, outcome)
        OPERATIONS.labels(job.kind, outcome.reason if isinstance(outcome, PlatformError) else "").inc()
        result = await self._operations.result(outcome)
        await until_reached(lambda: self._queues.complete(self._base_model, job.entry, result))
        self._jobs.pop(name, None)


async def _response(job: _RunningJob, result: GenerationResult) -> Message | PlatformError:
    """The response of a job; in a thread, because a large result takes seconds and heartbeats must go on."""
    try:
        response = await asyncio.to_thread(to_response, job.kind, result, job.targets)
    except Exception as error:
        _log.error("a result cannot be put into a message", kind=job.kind, exc_info=error)
        return InternalError("the result cannot be put into a message", reason="RESULT_TOO_LARGE")
    if isinstance(response, sampling_pb2.SampleResponse):
        GENERATED_TOKENS.inc(sum(len(sequence.tokens) for sequence in response.sequences))
        CACHED_PROMPT_TOKENS.inc(response.prompt_cache_hit_tokens)
    return response
