"""From a job on the queue to what its sampler does about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.core.errors import PlatformError
from services.core.queue.sample_queue import SampleEntry, SampleQueues
from services.core.storage.checkpoint_store import CheckpointStore
from services.sampler.convert import to_request
from services.sampler.engine.interface import SamplerEngine
from services.sampler.request import GenerationRequest
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import data_pb2

_log = structlog.get_logger(__name__)

UNREAD = "lost"
"""The kind of a job whose content could not be read, in metrics."""


@dataclass(frozen=True)
class Generation:
    """A job for the engine: a `sample` or a `compute_logprobs`."""

    kind: str
    request: GenerationRequest
    targets: data_pb2.Tensor | None = None
    """The job's target_prompt_logprobs; their layout is that of the answer."""


@dataclass(frozen=True)
class Merge:
    """A job for the merger."""

    job: job_pb2.Job
    kind: str = "merge_weights"


@dataclass(frozen=True)
class Refusal:
    """A job that cannot be carried out."""

    kind: str
    error: PlatformError


class JobReader:
    """Reads jobs of one engine.

    Args:
        engine: the engine.
        queues: where jobs are.
        checkpoints: where their adapters are.
    """

    def __init__(self, engine: SamplerEngine, queues: SampleQueues, checkpoints: CheckpointStore) -> None:
        self._engine = engine
        self._queues = queues
        self._checkpoints = checkpoints
        self._adapters: dict[str, asyncio.Future[Path]] = {}
        """Adapters that are being read, by location: many jobs begin at once when a new one has been saved."""

    async def read(self, entry: SampleEntry) -> Generation | Merge | Refusal:
        """Reads a job and its adapter."""
        kind = UNREAD
        try:
            job = await self._queues.read_job(entry)
            kind = job.WhichOneof("request") or UNREAD
            if kind == "merge_weights":
                return Merge(job)
            location = job.checkpoint_location
            request = to_request(
                job,
                adapter=await self._adapter(location) if location else None,
                eos_token_ids=self._engine.info.eos_token_ids,
                max_context_length=self._engine.info.max_context_length,
            )
            return Generation(kind, request, job.sample.target_prompt_logprobs if job.HasField("sample") else None)
        except PlatformError as error:
            return Refusal(kind, error)

    async def _adapter(self, location: str) -> Path:
        if location not in self._adapters:
            reading = self._adapters[location] = asyncio.ensure_future(asyncio.to_thread(self._read_adapter, location))
            reading.add_done_callback(lambda _: self._adapters.pop(location))
        return await asyncio.shield(self._adapters[location])

    def _read_adapter(self, location: str) -> Path:
        adapter = self._checkpoints.open(location)
        try:
            self._engine.read_ahead(adapter)
        except PlatformError:
            raise
        except Exception as error:  # the step that needs it ends the request with the error, if it is still one
            _log.warning("adapter not read ahead", location=location, error=str(error))
        return adapter
