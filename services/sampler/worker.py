"""The sampler's asyncio side: takes jobs while there is room, steps the engine on the device thread, reports results.

Three loops share one engine: `_take` brings jobs in, `_keep` tells the queue that they are still being worked on and
takes over those of samplers that died, `_step` runs the engine while it has something to do. A job that cannot even
start is reported by name like any other failure.
"""

from __future__ import annotations

import asyncio

import structlog
from google.protobuf.message import Message

from services.core.checkpoints import CheckpointStore
from services.core.connection import TRANSIENT_ERRORS
from services.core.errors import PlatformError
from services.core.operations import OperationStore
from services.core.persistence import until_reached
from services.core.sample_queue import SampleEntry, SampleQueues
from services.model.base import BaseModel
from services.model.device import DeviceThread
from services.sampler.convert import to_logprobs_response, to_request, to_sample_response
from services.sampler.engine import SamplerEngine
from services.sampler.request import Finished, GenerationRequest
from tinker_proto.internal.v1 import job_pb2

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
        *,
        lease_s: float,
    ) -> None:
        self._worker = worker
        self._base = base
        self._engine = engine
        self._queues = queues
        self._operations = operations
        self._checkpoints = checkpoints
        self._lease_s = lease_s
        self._device = DeviceThread()
        self._entries: dict[str, SampleEntry] = {}
        """Jobs at work, by operation."""

        self._scoring: set[str] = set()
        """Those of them that only score."""

        self._room = engine.free_sequences
        self._has_room = asyncio.Event()
        self._has_work = asyncio.Event()

        self.sequences_used = 0
        """Sequences that were running after the last step."""

    async def run(self) -> None:
        """Serves until cancelled; what is unfinished then is taken over by another sampler."""
        await until_reached(lambda: self._queues.join(self._base.name))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._take())
                tasks.create_task(self._keep())
                tasks.create_task(self._step())
        finally:
            self._device.close()

    async def _take(self) -> None:
        while True:
            if self._room == 0:
                self._has_room.clear()
                await self._has_room.wait()
            try:
                taken = await self._queues.take(self._worker, self._base.name, count=self._room, block_ms=2000)
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
                if self._room:
                    orphans = await self._queues.take_over(
                        self._worker, self._base.name, idle_ms=lease_ms, count=self._room
                    )
                    await self._start_all([entry for entry in orphans if entry.operation not in self._entries])
            except TRANSIENT_ERRORS as error:
                _log.warning("queue unreachable, trying again", error=str(error))

    async def _start_all(self, entries: list[SampleEntry]) -> None:
        for entry in entries:
            self._entries[entry.operation] = entry
            try:
                await self._start(entry)
            except PlatformError as error:
                await self._report(entry.operation, error)

    async def _start(self, entry: SampleEntry) -> None:
        """Hands a job to the engine, or drops it if it has its result already.

        Raises:
            PlatformError: it cannot start.
        """
        if not await until_reached(lambda: self._queues.begin(entry)):
            del self._entries[entry.operation]
            await until_reached(lambda: self._queues.drop(self._base.name, entry))
            return
        job = await self._queues.read_job(entry)
        request = self._request(job)
        self._room = await self._device.run(self._submit, request)
        if job.WhichOneof("request") == "compute_logprobs":
            self._scoring.add(entry.operation)
        self._has_work.set()

    def _request(self, job: job_pb2.Job) -> GenerationRequest:
        adapter = self._checkpoints.open(job.checkpoint_location) if job.checkpoint_location else None
        return to_request(
            job,
            adapter=adapter,
            eos_token_ids=self._base.eos_token_ids,
            max_context_length=self._engine.max_context_length,
        )

    async def _step(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            idle = False
            while not idle:
                finished, idle = await self._device.run(self._advance)
                for end in finished:
                    await self._report(end.name, self._response(end))
                if self._room:
                    self._has_room.set()

    def _submit(self, request: GenerationRequest) -> int:
        """On the device thread: queues a request; returns the room that is left."""
        self._engine.submit(request)
        return self._engine.free_sequences

    def _advance(self) -> tuple[list[Finished], bool]:
        """On the device thread: one step; returns the requests that ended and whether there is nothing left to do."""
        finished = self._engine.step()
        self._room = self._engine.free_sequences
        self.sequences_used = self._engine.running_sequences
        return finished, self._engine.idle

    def _response(self, finished: Finished) -> Message | PlatformError:
        if isinstance(finished.outcome, PlatformError):
            return finished.outcome
        if finished.name in self._scoring:
            return to_logprobs_response(finished.outcome)
        return to_sample_response(finished.outcome)

    async def _report(self, operation: str, outcome: Message | PlatformError) -> None:
        entry = self._entries.pop(operation)
        self._scoring.discard(operation)
        result = await self._operations.result(outcome)
        await until_reached(lambda: self._queues.complete(self._base.name, entry, result))
