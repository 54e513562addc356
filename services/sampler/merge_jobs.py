"""Merge jobs of a sampler: one at a time, in a thread of their own, while the engine goes on sampling.

The export becomes visible whole, and only once. A sampler that finds that another has written it reports that one.
"""

from __future__ import annotations

import asyncio
import threading

import structlog

from services.core.errors import AlreadyExistsError, CancelledError, InternalError, PlatformError
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.exports import ExportStore, describe
from services.model.adapter_files import read_adapter
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine.merged_model import write_merged
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

_log = structlog.get_logger(__name__)


class Merges:
    """Carries out merges into one base model."""

    def __init__(self, base: BaseModel, checkpoints: CheckpointStore, exports: ExportStore) -> None:
        self._base = base
        self._checkpoints = checkpoints
        self._exports = exports
        self._one_at_a_time = asyncio.Lock()
        self._given_up: dict[str, threading.Event] = {}
        """Of the merges under way, by operation: set when nobody wants one any more."""

    async def run(self, job: job_pb2.Job) -> sampling_pb2.MergeWeightsResponse | PlatformError:
        """Carries out a job; returns what its operation ends with."""
        given_up = self._given_up[job.operation] = threading.Event()
        try:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self._merge, job, given_up)
        except PlatformError as error:
            return error
        except Exception as error:
            _log.error("merge failed", operation=job.operation, exc_info=error)
            message = f"operation {job.operation} failed in the sampler, whose log has the details"
            return InternalError(message, reason="OPERATION_FAILED")
        finally:
            given_up.set()  # also when this process stops: the thread must not keep it
            del self._given_up[job.operation]

    def cancel(self, operation: str) -> None:
        """Gives up a merge; nothing happens if there is none of this name."""
        if operation in self._given_up:
            self._given_up[operation].set()

    def _merge(self, job: job_pb2.Job, given_up: threading.Event) -> sampling_pb2.MergeWeightsResponse:
        def go_on() -> None:
            if given_up.is_set():
                raise CancelledError(f"operation {job.operation} was given up")

        if not self._exports.exists(job.operation):
            adapter = self._adapter(job)
            try:
                with self._exports.write(job.operation) as directory:
                    write_merged(directory, self._base, adapter, go_on=go_on)
                    files = describe(directory)
                return sampling_pb2.MergeWeightsResponse(files=files)
            except AlreadyExistsError:
                pass
        return sampling_pb2.MergeWeightsResponse(files=self._exports.files(job.operation))

    def _adapter(self, job: job_pb2.Job) -> AdapterWeights:
        read = read_adapter(self._checkpoints.open(job.checkpoint_location), self._base)
        return AdapterWeights(read.config, read.layout, read.flat.cpu())
