"""The kinds of operations of a training run: one row each, by the name of the request in a job.

The gateway's validators and the queue's Job have the same kinds; a test holds the three together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from services.core import chunks
from services.trainer import executors
from services.trainer.convert import PassRequest
from services.trainer.executors import Executor, Reader
from services.trainer.values import PassResult
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import CheckpointKind
from tinker_proto.v1 import checkpoint_pb2

BACKWARD_COST = 3
"""A forward_backward costs about three times the forward pass over the same tokens."""


CHECKPOINT_TYPES: Mapping[CheckpointKind, checkpoint_pb2.CheckpointType.ValueType] = {
    CheckpointKind.WEIGHTS: checkpoint_pb2.CHECKPOINT_TYPE_TRAINING,
    CheckpointKind.SAMPLER_WEIGHTS: checkpoint_pb2.CHECKPOINT_TYPE_SAMPLER,
    CheckpointKind.EXTERNAL_WEIGHTS: checkpoint_pb2.CHECKPOINT_TYPE_EXTERNAL,
}


@dataclass(frozen=True)
class SharedPass:
    """What a kind's jobs are in a pass that several runs share."""

    request: Callable[[job_pb2.Job], PassRequest]
    respond: Callable[[PassResult], Message]

    token_cost: int
    """Token-passes that one token costs."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """The checkpoint that a kind saves."""

    kind: Callable[[job_pb2.Job], CheckpointKind]
    name: Callable[[job_pb2.Job], str]

    may_replace: Callable[[job_pb2.Job], bool] = lambda _: False
    """Whether a job may replace a checkpoint of that name."""


@dataclass(frozen=True)
class OperationKind:
    """A row."""

    execute: Executor

    read: Reader | None = None
    """Set if it reads files: beside the device thread and beside the cycles of other runs."""

    changes_run: bool = True
    """Whether it can change the run. A replay passes over what cannot."""

    shared_pass: SharedPass | None = None
    """Set if its jobs may share a pass with those of other runs."""

    is_step: bool = False
    """Whether it is an optimizer step."""

    reads_path: Callable[[job_pb2.Job], str] | None = None
    """The tinker path of the checkpoint that it loads; None if it loads none."""

    writes: SavedCheckpoint | None = None
    """The checkpoint that it saves; None if it saves none."""

    history: str = ""
    """Its method in the run's history of metrics; empty if it measures nothing."""


def _weights(_: job_pb2.Job) -> CheckpointKind:
    return CheckpointKind.WEIGHTS


KINDS: Mapping[str, OperationKind] = {
    "create_training_run": OperationKind(executors.create_training_run),
    "create_training_run_from_checkpoint": OperationKind(
        executors.create_training_run_from_checkpoint,
        read=executors.read_source,
        reads_path=lambda job: job.create_training_run_from_checkpoint.path,
    ),
    "import_checkpoint": OperationKind(
        executors.import_checkpoint,
        read=executors.read_import,
        # Its run is new, so the name is free; only an earlier attempt of the same import can have taken it.
        writes=SavedCheckpoint(_weights, lambda job: job.import_checkpoint.name, lambda _: True),
    ),
    "forward": OperationKind(
        executors.forward,
        changes_run=False,
        shared_pass=SharedPass(lambda job: job.forward, executors.forward_response, token_cost=1),
        history="Forward",
    ),
    "forward_backward": OperationKind(
        executors.forward_backward,
        shared_pass=SharedPass(
            lambda job: job.forward_backward, executors.forward_backward_response, token_cost=BACKWARD_COST
        ),
        history="ForwardBackward",
    ),
    "optim_step": OperationKind(executors.optim_step, is_step=True, history="OptimStep"),
    "save_state": OperationKind(
        executors.save_state,
        changes_run=False,
        writes=SavedCheckpoint(_weights, lambda job: job.save_state.name, lambda job: job.save_state.overwrite),
    ),
    "load_state": OperationKind(
        executors.load_state, read=executors.read_source, reads_path=lambda job: job.load_state.path
    ),
    "save_weights_for_sampler": OperationKind(
        executors.save_weights_for_sampler,
        changes_run=False,
        writes=SavedCheckpoint(
            lambda job: executors.sampler_kind(job.save_weights_for_sampler),
            lambda job: job.save_weights_for_sampler.name,
        ),
    ),
}


def kind_name(job: job_pb2.Job) -> str:
    """The name of a job's kind; "" for a job without a request."""
    return job.WhichOneof("request") or ""


def kind_of(job: job_pb2.Job) -> OperationKind | None:
    """A job's row; None for a job that is not a training run's."""
    return KINDS.get(kind_name(job))


def reads_files(job: job_pb2.Job) -> bool:
    """Whether a job reads files before it is carried out."""
    kind = kind_of(job)
    return kind is not None and kind.read is not None


def pass_tokens(job: job_pb2.Job) -> int:
    """Tokens that a job's examples ask to compute; 0 for a job that is no pass over data."""
    kind = kind_of(job)
    if kind is None or kind.shared_pass is None:
        return 0
    return sum(chunks.length(datum.model_input) for datum in kind.shared_pass.request(job).data)


def pass_cost(job: job_pb2.Job) -> int:
    """Token-passes of a job; 0 for a job that is no pass over data."""
    kind = kind_of(job)
    return kind.shared_pass.token_cost * pass_tokens(job) if kind is not None and kind.shared_pass is not None else 0
