"""Jobs from the log to their results: finds their checkpoints, has them executed, enters what they saved.

Whatever goes wrong becomes the operation's error and changes nothing in the run. A save writes to a location that holds
its seq_id, so carrying it out a second time, after a crash between writing and reporting, finds its own files there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from google.protobuf.message import Message

from services.core.catalog.checkpoints import StorageLimits, StoredCheckpoint, checkpoint_writes, pin_write
from services.core.catalog.run_metrics import metrics_write
from services.core.catalog.runs import Catalog, run_writes
from services.core.catalog.unnamed_weights import unnamed_writes
from services.core.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    PlatformError,
)
from services.core.names import OperationName
from services.core.process.device_thread import DeviceThread
from services.core.process.metrics import PASS_JOBS, PASS_SECONDS, TRAINED_TOKENS
from services.core.queue.connection import Write
from services.core.queue.recovery_state import fingerprint_write, source_write
from services.core.queue.run_log import FencedError
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.records import CheckpointRecord
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE, UploadStore
from services.core.unnamed_weights import location_of_name, weights_location
from services.trainer.engine.interface import TrainerEngine
from services.trainer.execute import Executed, execute, execute_together, prepared
from services.trainer.executors import Execution, Locations
from services.trainer.operation_kinds import CHECKPOINT_TYPES, kind_name, kind_of, reads_files
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import CheckpointKind, TinkerPath
from tinker_proto.v1 import checkpoint_pb2, training_pb2

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class JobResult:
    """What an operation ends with."""

    content: Message | PlatformError

    writes: Sequence[Write] = ()
    """What must become visible together with it."""


class JobRunner:
    """Carries out jobs of training runs."""

    def __init__(
        self,
        engine: TrainerEngine,
        device: DeviceThread,
        catalog: Catalog,
        checkpoints: CheckpointStore,
        uploads: UploadStore,
        limits: StorageLimits,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._device = device
        self._catalog = catalog
        self._checkpoints = checkpoints
        self._uploads = uploads

    async def run(self, job: job_pb2.Job, *, is_wanted: Callable[[], bool] = lambda: True) -> JobResult:
        """Carries out a job.

        Args:
            job: the job.
            is_wanted: asked when the job's files have been read.

        Raises:
            FencedError: it is not wanted.
        """
        try:
            source, target = await self._source(job), await self._target(job)
            with PASS_SECONDS.labels(kind_name(job)).time():
                executed = await self._execute(job, source, target, is_wanted)
            _count_tokens([executed])
            writes = await self._writes(job, source, target, executed.response)
            return JobResult(executed.response, [*writes, *self._origin(job), *_history(job, executed)])
        except FencedError:
            raise
        except Exception as error:
            return JobResult(_failure(job, error))

    async def run_together(self, jobs: Sequence[job_pb2.Job]) -> list[JobResult]:
        """Carries out forward and forward_backward jobs of any runs in one pass."""
        with PASS_SECONDS.labels("shared").time():
            results = await self._device.run(execute_together, self._engine, jobs)
        PASS_JOBS.observe(len(jobs))
        _count_tokens([result for result in results if isinstance(result, Executed)])
        return [
            JobResult(_failure(job, result))
            if isinstance(result, Exception)
            else JobResult(result.response, _history(job, result))
            for job, result in zip(jobs, results, strict=True)
        ]

    async def replay(self, job: job_pb2.Job, source: str, *, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Does again, in memory, what a finished job did to its run.

        Args:
            job: the job; not one that saves.
            source: where the checkpoint is that it loaded; "" if it loaded none.
            is_wanted: as for `run`.

        Raises:
            PlatformError: it cannot be done again.
            FencedError: as `run`.
        """
        try:
            await self._execute(job, source, None, is_wanted)
        except FencedError:
            raise
        except Exception as error:
            raise _failure(job, error) from error

    async def _execute(
        self, job: job_pb2.Job, source: str, target: TinkerPath | None, is_wanted: Callable[[], bool]
    ) -> Executed:
        locations = Locations(
            source=source,
            target=_location(job, target) if target is not None else "",
            uploads=await self._uploaded(job, target),
        )
        execution = Execution(self._engine, self._checkpoints, job, locations)
        if reads_files(job):
            execution = await asyncio.to_thread(prepared, execution)
            if not is_wanted():
                raise FencedError(f"another worker has taken the run of operation {job.operation}")
        return await self._device.run(execute, execution)

    async def _source(self, job: job_pb2.Job) -> str:
        """The location of the checkpoint that a job loads, pinned for a replay; "" if it loads none."""
        kind = kind_of(job)
        if kind is None or kind.reads_path is None:
            return ""
        path = TinkerPath.parse(kind.reads_path(job))
        return (await self._catalog.checkpoints.pin(path, job.tenant, job.operation)).location

    async def _uploaded(self, job: job_pb2.Job, target: TinkerPath | None) -> Sequence[Path]:
        """The files that an import reads; none if it has written its checkpoint before, or the job is no import.

        The weights are verified, which reads all of them, when their header has been found to fit.
        """
        if not job.HasField("import_checkpoint") or target is None:
            return ()
        if await asyncio.to_thread(self._checkpoints.exists, _location(job, target)):
            return ()
        return await asyncio.to_thread(self._checked_uploads, job.tenant, job.import_checkpoint)

    def _checked_uploads(self, tenant: str, request: checkpoint_pb2.ImportCheckpointRequest) -> Sequence[Path]:
        config = self._uploads.open(tenant, request.config_upload_id, CONFIG_FILE)
        weights = self._uploads.find(tenant, request.weights_upload_id, WEIGHTS_FILE)
        self._engine.check_import(config, weights, rename_base_model=request.rename_base_model)
        self._uploads.verify(weights, request.weights_upload_id, WEIGHTS_FILE)
        return config, weights

    async def _target(self, job: job_pb2.Job) -> TinkerPath | None:
        """The path that a job saves to; None if it saves nothing.

        Raises:
            AlreadyExistsError: the name is taken.
            FailedPreconditionError: the tenant has as much as it may.
        """
        kind = kind_of(job)
        if kind is None or kind.writes is None:
            return None
        path = TinkerPath(OperationName.parse(job.operation).scope, kind.writes.kind(job), kind.writes.name(job))
        replaced = await self._catalog.checkpoints.location_of(path)
        is_listed = not _is_unnamed(job)
        await self._catalog.checkpoints.check_space(job.tenant, self._limits, replaced=replaced, is_listed=is_listed)
        if kind.writes.may_replace(job) or not await self._is_taken(path, job.tenant):
            return path
        message = f"there is a checkpoint {path} already; choose another name"
        if path.kind is CheckpointKind.WEIGHTS:
            message += " or set overwrite"
        raise AlreadyExistsError(message, reason="CHECKPOINT_EXISTS")

    async def _is_taken(self, path: TinkerPath, tenant: str) -> bool:
        try:
            await self._catalog.checkpoints.get(path, tenant)
        except NotFoundError:
            location = location_of_name(path.training_run_id, path.name)
            is_sampler = path.kind is CheckpointKind.SAMPLER_WEIGHTS
            return is_sampler and bool(location) and await self._catalog.unnamed_weights.are_there(location)
        return True

    async def _writes(
        self, job: job_pb2.Job, source: str, target: TinkerPath | None, response: Message
    ) -> Sequence[Write]:
        """What must become visible together with a job's result."""
        name = OperationName.parse(job.operation)
        if source:
            return [source_write(name.scope, name.seq_id, source)]
        if target is None:
            return ()
        if isinstance(response, checkpoint_pb2.ImportCheckpointResponse):
            run = response.training_run
            location = _location(job, target)
            written = [source_write(name.scope, name.seq_id, location), pin_write(location, job.operation)]
            return [*run_writes(job.tenant, run), *await self._entry(job, target, run), *written]
        return await self._entry(job, target, await self._catalog.run_record(target.training_run_id, job.tenant))

    def _origin(self, job: job_pb2.Job) -> Sequence[Write]:
        """The write that records which base model a job has created its run on; none if it has created none."""
        name = OperationName.parse(job.operation)
        return [fingerprint_write(name.scope, self._engine.info.fingerprint.value)] if name.seq_id == 0 else []

    async def _entry(self, job: job_pb2.Job, path: TinkerPath, run: training_pb2.TrainingRun) -> Sequence[Write]:
        """The writes that enter a saved checkpoint into the catalog; without space for it its files are deleted."""
        location, request = _location(job, path), getattr(job, kind_name(job))
        size_bytes = await asyncio.to_thread(self._checkpoints.size_bytes, location)
        replaced = await self._catalog.checkpoints.location_of(path)
        try:
            is_listed = not _is_unnamed(job)
            await self._catalog.checkpoints.check_space(
                job.tenant, self._limits, size_bytes, replaced, is_listed=is_listed
            )
        except FailedPreconditionError:
            await asyncio.to_thread(self._checkpoints.delete, location)
            raise
        checkpoint = checkpoint_pb2.Checkpoint(
            checkpoint_id=path.checkpoint_id,
            checkpoint_type=CHECKPOINT_TYPES[path.kind or CheckpointKind.WEIGHTS],
            tinker_path=str(path),
            size_bytes=size_bytes,
            training_run_id=path.training_run_id,
            base_model=run.base_model,
            lora_config=run.lora_config,
            user_metadata=request.user_metadata,
        )
        now = datetime.now(UTC)
        checkpoint.time.FromDatetime(now)
        if _is_unnamed(job):
            seq_id = OperationName.parse(job.operation).seq_id
            return unnamed_writes(job.tenant, StoredCheckpoint(checkpoint, location), seq_id)
        if request.HasField("ttl_seconds"):
            checkpoint.expires_at.FromDatetime(now + timedelta(seconds=request.ttl_seconds))
        record = CheckpointRecord(job.tenant, checkpoint, run)
        await asyncio.to_thread(self._checkpoints.records.put, location, record)
        return checkpoint_writes(job.tenant, StoredCheckpoint(checkpoint, location), replaced)


def _count_tokens(executed: Sequence[Executed]) -> None:
    TRAINED_TOKENS.inc(sum(one.metrics.tokens for one in executed if one.metrics is not None))


def _history(job: job_pb2.Job, executed: Executed) -> Sequence[Write]:
    """The writes that enter a job's metrics into its run's history."""
    metrics = executed.metrics
    return [metrics_write(OperationName.parse(job.operation).scope, metrics)] if metrics is not None else []


def _failure(job: job_pb2.Job, error: Exception) -> PlatformError:
    """The error that a client gets; an internal one goes to the log with its traceback."""
    if isinstance(error, PlatformError):
        return error
    _log.error("operation failed", operation=job.operation, exc_info=error)
    message = f"operation {job.operation} failed in the trainer; see its log"
    return InternalError(message, reason="OPERATION_FAILED")


def _location(job: job_pb2.Job, path: TinkerPath) -> str:
    """The location of a save's files; see services.core.storage.checkpoint_store."""
    seq_id = OperationName.parse(job.operation).seq_id
    if _is_unnamed(job):
        return weights_location(path.training_run_id, seq_id)
    return f"{path.training_run_id}/{path.checkpoint_id}/{seq_id}"


def _is_unnamed(job: job_pb2.Job) -> bool:
    return job.save_weights_for_sampler.for_sampling_session
