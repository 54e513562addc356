"""What operations have measured, for the history of their runs.

Runs on the engine's thread, right behind the operation, so that the step which an entry names is the one that it saw.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.message import Message

from services.core.names import OperationName
from services.core.storage.checkpoint_store import CheckpointStore
from services.trainer.engine.execute import Locations, execute, execute_together
from services.trainer.engine.local import TrainerEngine
from services.trainer.operation_kinds import token_count
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import training_pb2

Measured = tuple[Message | Exception, training_pb2.TrainingMetrics | None]
"""What an operation has returned, and what goes into its run's history; None for one that measures nothing."""

_METHODS = {"forward": "Forward", "forward_backward": "ForwardBackward", "optim_step": "OptimStep"}


def execute_measured(
    engine: TrainerEngine, checkpoints: CheckpointStore, job: job_pb2.Job, locations: Locations
) -> tuple[Message, training_pb2.TrainingMetrics | None]:
    """Carries out a job; raises as `execute`."""
    began = time.monotonic()
    response = execute(engine, checkpoints, job, locations)
    return response, _entry(engine, job, response, time.monotonic() - began)


def execute_together_measured(engine: TrainerEngine, jobs: Sequence[job_pb2.Job]) -> list[Measured]:
    """Carries out forward and forward_backward jobs of any runs in one pass, whose time they share."""
    began = time.monotonic()
    outcomes = execute_together(engine, jobs)
    seconds = time.monotonic() - began
    return [
        (outcome, None if isinstance(outcome, Exception) else _entry(engine, job, outcome, seconds))
        for job, outcome in zip(jobs, outcomes, strict=True)
    ]


def _entry(
    engine: TrainerEngine, job: job_pb2.Job, response: Message, seconds: float
) -> training_pb2.TrainingMetrics | None:
    kind = job.WhichOneof("request")
    if kind not in _METHODS:
        return None
    name = OperationName.parse(job.operation)
    entry = training_pb2.TrainingMetrics(
        seq_id=name.seq_id, method=_METHODS[kind], step=engine.run(name.scope).step, seconds=seconds
    )
    entry.time.FromDatetime(datetime.now(UTC))
    match response:
        case training_pb2.OptimStepResponse():
            entry.metrics.update(response.metrics)
            entry.metrics["learning_rate:mean"] = job.optim_step.adam_params.learning_rate
        case training_pb2.ForwardResponse():
            entry.metrics.update(response.metrics)
            entry.tokens = token_count(job.forward.data)
        case training_pb2.ForwardBackwardResponse():
            entry.metrics.update(response.metrics)
            entry.tokens = token_count(job.forward_backward.data)
    return entry
