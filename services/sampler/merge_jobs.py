"""Merge jobs of a sampler: one at a time, in a thread of their own, while the engine goes on sampling.

The export becomes visible whole, and only once. A sampler that finds that another has written it reports that one.
"""

from __future__ import annotations

import asyncio
import threading

import structlog

from services.core.abilities import Ability, missing_ability
from services.core.errors import AlreadyExistsError, CancelledError, InternalError, PlatformError
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.exports import ExportStore, describe
from services.sampler.engine.interface import SamplerEngine, WeightMerger
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

_log = structlog.get_logger(__name__)


class MergeJobs:
    """Carries out merges into one engine's base model."""

    def __init__(self, engine: SamplerEngine, checkpoints: CheckpointStore, exports: ExportStore) -> None:
        self._engine = engine
        self._checkpoints = checkpoints
        self._exports = exports
        self._one_at_a_time = asyncio.Lock()
        self._cancelled: dict[str, threading.Event] = {}
        """Of the merges under way, by operation: set when the merge is to stop."""

    async def run(self, job: job_pb2.Job) -> sampling_pb2.MergeWeightsResponse | PlatformError:
        """Carries out a job; returns what its operation ends with."""
        merger = self._engine.merger
        if merger is None:  # the gateway refuses it, unless another sampler of the base model can merge
            name = self._engine.info.base_model
            return missing_ability(Ability.MERGE_WEIGHTS, field="sampling_session_id", base_model=name)
        cancelled = self._cancelled[job.operation] = threading.Event()
        try:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self._merge, merger, job, cancelled)
        except PlatformError as error:
            return error
        except Exception as error:
            _log.error("merge failed", operation=job.operation, exc_info=error)
            message = f"operation {job.operation} failed in the sampler; see its log"
            return InternalError(message, reason="OPERATION_FAILED")
        finally:
            cancelled.set()  # also when this process stops: the thread must not keep it
            del self._cancelled[job.operation]

    def cancel(self, operation: str) -> None:
        """Stops a merge; nothing happens if there is none of this name."""
        if operation in self._cancelled:
            self._cancelled[operation].set()

    def _merge(
        self, merger: WeightMerger, job: job_pb2.Job, cancelled: threading.Event
    ) -> sampling_pb2.MergeWeightsResponse:
        def check_wanted() -> None:
            if cancelled.is_set():
                raise CancelledError(f"operation {job.operation} was cancelled")

        if not self._exports.exists(job.operation):
            adapter = self._checkpoints.open(job.checkpoint_location)
            try:
                with self._exports.write(job.operation) as directory:
                    merger.merge(adapter, directory, check_wanted=check_wanted)
                    files = describe(directory)
                return sampling_pb2.MergeWeightsResponse(files=files)
            except AlreadyExistsError:
                pass
        return sampling_pb2.MergeWeightsResponse(files=self._exports.files(job.operation))
