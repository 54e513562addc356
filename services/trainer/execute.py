"""Jobs on the device thread: carried out as their kinds say, and measured for the histories of their runs.

Metrics are taken right behind the operation, so that the step which an entry names is the one that it saw.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from google.protobuf.message import Message

from services.core.errors import InternalError, ResourceExhaustedError
from services.core.names import OperationName
from services.trainer.convert import to_pass_job
from services.trainer.engine.interface import TrainerEngine
from services.trainer.executors import Execution
from services.trainer.operation_kinds import OperationKind, SharedPass, kind_name, kind_of, pass_tokens
from services.trainer.values import PassJob, PassResult
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import training_pb2


@dataclass(frozen=True)
class Executed:
    """A job that has succeeded."""

    response: Message

    metrics: training_pb2.TrainingMetrics | None
    """The entry for its run's history; None if its kind measures nothing."""


def prepared(execution: Execution) -> Execution:
    """An execution with what its job's kind reads from files; on any thread.

    Raises:
        PlatformError: the job fails.
    """
    kind = kind_of(execution.job)
    if kind is None or kind.read is None:
        return execution
    with _memory_named(execution):
        return replace(execution, read=kind.read(execution))


def execute(execution: Execution) -> Executed:
    """Carries out a prepared job alone.

    Raises:
        PlatformError: the job fails and its run is as it was, the accumulated gradient included.
    """
    job, engine = execution.job, execution.engine
    kind = kind_of(job)
    if kind is None:
        raise InternalError(f"a trainer received job {job.operation} of kind {kind_name(job) or 'none'}")
    began = time.monotonic()
    with _memory_named(execution):
        response = kind.execute(execution)
    return Executed(response, _metrics(engine, kind, job, response, time.monotonic() - began))


def execute_together(engine: TrainerEngine, jobs: Sequence[job_pb2.Job]) -> list[Executed | Exception]:
    """Carries out jobs that may share a pass in one pass, whose time they share; each succeeds or has its error."""
    began = time.monotonic()
    read = [_read(job) for job in jobs]
    results = iter(engine.run_jobs([item.job for item in read if isinstance(item, _Shared)]))
    outcomes = [(item, next(results)) if isinstance(item, _Shared) else item for item in read]
    seconds = time.monotonic() - began
    return [outcome if isinstance(outcome, Exception) else _executed(engine, *outcome, seconds) for outcome in outcomes]


@contextmanager
def _memory_named(execution: Execution) -> Iterator[None]:
    """Turns the error of a memory that is full into a platform error."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not execution.engine.is_out_of_memory(error):
            raise
        job = execution.job
        message = f"the trainer has no memory left to carry out {kind_name(job)} of operation {job.operation}"
        raise ResourceExhaustedError(message, reason="OUT_OF_MEMORY") from error


@dataclass(frozen=True)
class _Shared:
    """A job in a shared pass."""

    queued: job_pb2.Job
    kind: OperationKind
    shared_pass: SharedPass
    job: PassJob


def _read(job: job_pb2.Job) -> _Shared | Exception:
    kind = kind_of(job)
    if kind is None or kind.shared_pass is None:
        return InternalError(f"job {job.operation} of kind {kind_name(job) or 'none'} cannot share a pass")
    try:
        return _Shared(job, kind, kind.shared_pass, to_pass_job(kind.shared_pass.request(job)))
    except Exception as error:
        return error


def _executed(
    engine: TrainerEngine, shared: _Shared, result: PassResult | Exception, seconds: float
) -> Executed | Exception:
    if isinstance(result, Exception):
        return result
    response = shared.shared_pass.respond(result)
    return Executed(response, _metrics(engine, shared.kind, shared.queued, response, seconds))


def _metrics(
    engine: TrainerEngine, kind: OperationKind, job: job_pb2.Job, response: Message, seconds: float
) -> training_pb2.TrainingMetrics | None:
    if not kind.history:
        return None
    name = OperationName.parse(job.operation)
    entry = training_pb2.TrainingMetrics(
        seq_id=name.seq_id,
        method=kind.history,
        step=engine.run(name.scope).step,
        tokens=pass_tokens(job),
        seconds=seconds,
    )
    entry.time.FromDatetime(datetime.now(UTC))
    match response:
        case training_pb2.ForwardResponse() | training_pb2.ForwardBackwardResponse():
            entry.metrics.update(response.metrics)
        case training_pb2.OptimStepResponse():
            entry.metrics.update(response.metrics)
            entry.metrics["learning_rate:mean"] = job.optim_step.adam_params.learning_rate
    return entry
