"""The sampler's asyncio side: takes jobs while there is room, steps the engine on the device thread, reports results.

Its loops share one engine: `_take` brings jobs in, `_keep` tells the queue that they are still being worked on and
takes over those of samplers that died, `_step` runs the engine while it has something to do, `_listen_for_cancelled`
drops what nobody wants any more; the publisher and `_report` send tokens of streamed jobs and results, so that no step
waits for Redis. A job that cannot even start is reported by name like any other failure.
"""

from __future__ import annotations

import asyncio

import structlog
from google.protobuf.message import Message

from services.core.errors import PlatformError
from services.core.process.device_thread import DeviceThread
from services.core.process.metrics import (
    CACHED_PROMPT_TOKENS,
    GENERATED_TOKENS,
    OPERATIONS,
    PROMPT_TOKENS,
    STEP_SECONDS,
    STEP_SEQUENCES,
)
from services.core.queue.connection import TRANSIENT_ERRORS
from services.core.queue.liveness import Contact
from services.core.queue.operations import OperationStore
from services.core.queue.retry import until_reached
from services.core.queue.sample_queue import SampleEntry, SampleQueues
from services.core.queue.token_stream import TokenStream
from services.core.storage.checkpoint_store import CheckpointStore
from services.model.base import BaseModel
from services.sampler.convert import to_logprobs_response, to_request, to_sample_response
from services.sampler.engine.native import SamplerEngine
from services.sampler.merge_jobs import Merges
from services.sampler.publisher import Publisher
from services.sampler.request import Finished, GenerationRequest, Piece
from tinker_proto.internal.v1 import job_pb2

REPORTED_AT_ONCE = 64

_log = structlog.get_logger(__name__)


class SamplerWorker:
    """Serves one base model's sampling queue."""

    def __init__(
        self,
        worker: str,
        base: BaseModel,
        engine: SamplerEngine,
        queues: SampleQueues,
        operations: OperationStore,
        checkpoints: CheckpointStore,
        merges: Merges,
        tokens: TokenStream,
        contact: Contact,
        *,
        lease_s: float,
    ) -> None:
        self._worker = worker
        self._base = base
        self._engine = engine
        self._queues = queues
        self._operations = operations
        self._checkpoints = checkpoints
        self._merges = merges
        self._publisher = Publisher(tokens)
        self._contact = contact
        self._lease_s = lease_s
        self._device = DeviceThread()
        self._tasks = asyncio.TaskGroup()
        self._entries: dict[str, SampleEntry] = {}
        """Jobs at work, by operation."""

        self._scoring: set[str] = set()
        """Those of them that only score."""

        self._room = engine.free_sequences
        self._has_room = asyncio.Event()
        self._has_work = asyncio.Event()
        self._ended: list[Finished] = []
        """Results that are not reported yet."""

        self._has_ended = asyncio.Event()

        self.sequences_used = 0
        """Sequences that were running after the last step."""

    async def run(self) -> None:
        """Serves until cancelled; what is unfinished then is taken over by another sampler."""
        await until_reached(lambda: self._queues.join(self._base.name))
        position = await until_reached(self._operations.cancelled_position)
        try:
            async with self._tasks as tasks:
                tasks.create_task(self._contact.keep())
                tasks.create_task(self._take())
                tasks.create_task(self._keep())
                tasks.create_task(self._step())
                tasks.create_task(self._listen_for_cancelled(position))
                tasks.create_task(self._publisher.run())
                tasks.create_task(self._report())
        finally:
            self._device.close()

    async def _take(self) -> None:
        while True:
            while (room := self._room) == 0:  # whoever has been woken may find that others have taken it
                self._has_room.clear()
                await self._has_room.wait()
            try:
                taken = await self._queues.take(self._worker, self._base.name, room=room, block_ms=1000)
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))
                await asyncio.sleep(0.5)
                continue
            await self._start_all(taken)

    async def _keep(self) -> None:
        lease_ms = int(self._lease_s * 1000)
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self._queues.keep(self._worker, self._base.name, list(self._entries.values()))
                if self._room and self._contact.is_steady:
                    orphans = await self._queues.take_over(
                        self._worker, self._base.name, idle_ms=lease_ms, count=self._room
                    )
                    await self._start_all([entry for entry in orphans if entry.operation not in self._entries])
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

    async def _cancel(self, name: str) -> None:
        """Frees what a job holds, between two steps; its record has its end already."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._scoring.discard(name)
            self._merges.cancel(name)
            self._room = await self._device.run(self._forget, name)
            self._has_room.set()
            await until_reached(lambda: self._queues.drop(self._base.name, entry))

    async def _start_all(self, entries: list[SampleEntry]) -> None:
        """Hands jobs to the engine, all of them between the same two steps."""
        self._entries |= {entry.operation: entry for entry in entries}
        prepared = await asyncio.gather(*(self._prepare(entry) for entry in entries))
        requests = [request for request in prepared if request is not None and request.name in self._entries]
        if requests:
            refused, self._room = await self._device.run(self._submit, requests)
            self._has_work.set()
            self._end(refused)

    async def _prepare(self, entry: SampleEntry) -> GenerationRequest | None:
        """Begins a job; None if it has its result already, or cannot be carried out and is reported so."""
        if not await until_reached(lambda: self._queues.begin(self._worker, entry)):
            self._entries.pop(entry.operation, None)
            await until_reached(lambda: self._queues.drop(self._base.name, entry))
            return None
        try:
            job = await self._queues.read_job(entry)
            if job.WhichOneof("request") == "merge_weights":
                self._tasks.create_task(self._merge(job))
                return None
            if job.WhichOneof("request") == "compute_logprobs":
                self._scoring.add(entry.operation)
            return await self._request(job)
        except PlatformError as error:
            self._end([Finished(entry.operation, error)])
            return None

    async def _merge(self, job: job_pb2.Job) -> None:
        await self._complete(job.operation, await self._merges.run(job))

    async def _request(self, job: job_pb2.Job) -> GenerationRequest:
        location = job.checkpoint_location
        adapter = await asyncio.to_thread(self._checkpoints.open, location) if location else None
        request = to_request(
            job,
            adapter=adapter,
            eos_token_ids=self._base.eos_token_ids,
            max_context_length=self._engine.max_context_length,
        )
        PROMPT_TOKENS.inc(len(request.prompt))
        return request

    async def _step(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            idle = False
            while not idle:
                finished, pieces, idle = await self._device.run(self._advance)
                self._publisher.add(pieces)
                self._end(finished)
                if self._room:
                    self._has_room.set()

    def _submit(self, requests: list[GenerationRequest]) -> tuple[list[Finished], int]:
        """On the device thread: queues requests; returns those that are refused, and the room that is left."""
        refused = []
        for request in requests:
            try:
                self._engine.submit(request)
            except PlatformError as error:
                refused.append(Finished(request.name, error))
        return refused, self._engine.free_sequences

    def _forget(self, name: str) -> int:
        """On the device thread: cancels a request; returns the room that is left."""
        self._engine.cancel(name)
        return self._engine.free_sequences

    def _advance(self) -> tuple[list[Finished], list[Piece], bool]:
        """On the device thread: one step; returns what ended, new streamed tokens, and whether it is idle."""
        STEP_SEQUENCES.observe(self._engine.running_sequences)
        with STEP_SECONDS.time():
            finished = self._engine.step()
        self._room = self._engine.free_sequences
        self.sequences_used = self._engine.running_sequences
        return finished, self._engine.take_pieces(), self._engine.idle

    def _response(self, finished: Finished) -> Message | PlatformError:
        if isinstance(finished.outcome, PlatformError):
            return finished.outcome
        if finished.name in self._scoring:
            return to_logprobs_response(finished.outcome)
        response = to_sample_response(finished.outcome)
        GENERATED_TOKENS.inc(sum(len(sequence.tokens) for sequence in response.sequences))
        CACHED_PROMPT_TOKENS.inc(response.prompt_cache_hit_tokens)
        return response

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
                await asyncio.gather(*(self._complete(end.name, self._response(end)) for end in ended))

    async def _complete(self, name: str, outcome: Message | PlatformError) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return  # cancelled meanwhile
        OPERATIONS.labels("sample", outcome.reason if isinstance(outcome, PlatformError) else "").inc()
        result = await self._operations.result(outcome)
        await until_reached(lambda: self._queues.complete(self._base.name, entry, result))
        self._entries.pop(name, None)
        self._scoring.discard(name)
