"""From a job on the queue to what its sampler does about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.core.errors import PlatformError
from services.core.queue.sample_queue import SampleEntry, SampleQueues
from services.core.storage.checkpoint_store import CheckpointStore
from services.sampler.convert import to_request
from services.sampler.engine.interface import EngineInfo
from services.sampler.request import GenerationRequest
from tinker_proto.internal.v1 import job_pb2

UNREAD = "lost"
"""The kind of a job whose content could not be read, in metrics."""


@dataclass(frozen=True)
class Generation:
    """A job for the engine: a `sample` or a `compute_logprobs`."""

    kind: str
    request: GenerationRequest


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
        info: facts about the engine.
        queues: where jobs are.
        checkpoints: where their adapters are.
    """

    def __init__(self, info: EngineInfo, queues: SampleQueues, checkpoints: CheckpointStore) -> None:
        self._info = info
        self._queues = queues
        self._checkpoints = checkpoints

    async def read(self, entry: SampleEntry) -> Generation | Merge | Refusal:
        """Reads a job, and makes its adapter's files available on this machine."""
        kind = UNREAD
        try:
            job = await self._queues.read_job(entry)
            kind = job.WhichOneof("request") or UNREAD
            if kind == "merge_weights":
                return Merge(job)
            location = job.checkpoint_location
            adapter = await asyncio.to_thread(self._checkpoints.open, location) if location else None
            request = to_request(
                job,
                adapter=adapter,
                eos_token_ids=self._info.eos_token_ids,
                max_context_length=self._info.max_context_length,
            )
            return Generation(kind, request)
        except PlatformError as error:
            return Refusal(kind, error)
