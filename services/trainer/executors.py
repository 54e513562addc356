"""One function a kind of operation: from the request in the queue to the message that its operation returns.

Functions run on the device thread, and what they need of files has been read before, on another. Tinker paths arrive
with the locations that the job runner has looked up for them.
Carrying a job out again after a crash gives the same result: a checkpoint that an earlier attempt of the same operation
has written is used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from services.core.errors import AlreadyExistsError, InternalError
from services.core.names import training_run_id
from services.core.storage.checkpoint_store import CheckpointStore
from services.model.manifest import Manifest
from services.trainer.convert import to_adam_params, to_adapter_config, to_lora_config, to_loss_fn_outputs, to_pass_job
from services.trainer.engine.interface import CheckpointContent, Run, RunExport, TrainerEngine
from services.trainer.values import PassJob, PassResult
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import CheckpointKind, TinkerPath
from tinker_proto.v1 import checkpoint_pb2, training_pb2


@dataclass(frozen=True)
class Locations:
    """Places in the checkpoint store of the checkpoints that a job names by tinker path."""

    source: str = ""
    """The one to read: load_state and create_training_run_from_checkpoint, and import_checkpoint done again."""

    target: str = ""
    """The one to write: save_state, save_weights_for_sampler and import_checkpoint. Unique to the operation."""

    uploads: Sequence[Path] = ()
    """import_checkpoint only: adapter_config.json and adapter_model.safetensors; empty if they are gone."""


@dataclass(frozen=True)
class Execution:
    """One job with what it needs."""

    engine: TrainerEngine
    checkpoints: CheckpointStore
    job: job_pb2.Job
    locations: Locations

    read: RunExport | None = None
    """What the job's kind reads."""


Reader = Callable[[Execution], RunExport]
"""Reads what a job needs, on any thread.

Raises:
    PlatformError: the job fails.
"""

Executor = Callable[[Execution], Message]
"""Carries out a job.

Raises:
    PlatformError: the job fails, and its run is as it was, the accumulated gradient included.
"""


def create_training_run(execution: Execution) -> Message:
    """Creates a run with a fresh adapter."""
    request = execution.job.create_training_run
    run_id = training_run_id(request.session_id, request.training_run_seq_id)
    run = execution.engine.create_run(run_id, to_adapter_config(request.lora_config))
    return training_pb2.CreateTrainingRunResponse(
        training_run=_training_run(execution, run_id, run, request.user_metadata)
    )


def create_training_run_from_checkpoint(execution: Execution) -> Message:
    """Creates a run from a checkpoint."""
    request = execution.job.create_training_run_from_checkpoint
    run_id = training_run_id(request.session_id, request.training_run_seq_id)
    run = execution.engine.open_run(run_id, _read(execution), restore_optimizer=request.restore_optimizer)
    return training_pb2.CreateTrainingRunResponse(
        training_run=_training_run(execution, run_id, run, request.user_metadata)
    )


def read_source(execution: Execution) -> RunExport:
    """Reads the checkpoint that a job loads."""
    return execution.engine.read_checkpoint(execution.checkpoints.open(execution.locations.source))


def read_import(execution: Execution) -> RunExport:
    """Reads an uploaded adapter and saves it, or reads the checkpoint that an earlier attempt has saved."""
    request, locations = execution.job.import_checkpoint, execution.locations
    saved = locations.source or (locations.target if _is_written(execution) else "")
    if saved:
        return execution.engine.read_checkpoint(execution.checkpoints.open(saved))
    run_id = training_run_id(request.session_id, request.training_run_seq_id)
    config, weights = locations.uploads
    export = execution.engine.read_import(run_id, config, weights, rename_base_model=request.rename_base_model)
    _write(execution, export, "training")
    return export


def import_checkpoint(execution: Execution) -> Message:
    """Creates a run from an imported adapter."""
    request = execution.job.import_checkpoint
    run_id = training_run_id(request.session_id, request.training_run_seq_id)
    run = execution.engine.open_run(run_id, _read(execution), restore_optimizer=True)
    return checkpoint_pb2.ImportCheckpointResponse(
        path=str(TinkerPath(run_id, CheckpointKind.WEIGHTS, request.name)),
        training_run=_training_run(execution, run_id, run, request.user_metadata),
    )


def forward(execution: Execution) -> Message:
    """Computes losses."""
    return forward_response(_alone(execution, to_pass_job(execution.job.forward)))


def forward_backward(execution: Execution) -> Message:
    """Computes losses and adds their gradient to the run's."""
    return forward_backward_response(_alone(execution, to_pass_job(execution.job.forward_backward)))


def forward_response(result: PassResult) -> Message:
    """The response of a forward."""
    return training_pb2.ForwardResponse(loss_fn_outputs=to_loss_fn_outputs(result), metrics=result.metrics)


def forward_backward_response(result: PassResult) -> Message:
    """The response of a forward_backward."""
    return training_pb2.ForwardBackwardResponse(loss_fn_outputs=to_loss_fn_outputs(result), metrics=result.metrics)


def optim_step(execution: Execution) -> Message:
    """Takes an optimizer step."""
    request = execution.job.optim_step
    norm = execution.engine.optim_step(request.training_run_id, to_adam_params(request.adam_params))
    return training_pb2.OptimStepResponse(metrics={"grad_norm:mean": norm})


def save_state(execution: Execution) -> Message:
    """Writes a training checkpoint."""
    request = execution.job.save_state
    _save(execution, request.training_run_id, "training")
    path = TinkerPath(request.training_run_id, CheckpointKind.WEIGHTS, request.name)
    return training_pb2.SaveStateResponse(path=str(path))


def save_weights_for_sampler(execution: Execution) -> Message:
    """Writes a sampler checkpoint, or one to download."""
    request = execution.job.save_weights_for_sampler
    _save(execution, request.training_run_id, "external" if request.external else "sampler")
    path = TinkerPath(request.training_run_id, sampler_kind(request), request.name)
    return training_pb2.SaveWeightsForSamplerResponse(path=str(path))


def sampler_kind(request: training_pb2.SaveWeightsForSamplerRequest) -> CheckpointKind:
    """The kind of the checkpoint that a save without the optimizer writes."""
    return CheckpointKind.EXTERNAL_WEIGHTS if request.external else CheckpointKind.SAMPLER_WEIGHTS


def load_state(execution: Execution) -> Message:
    """Loads a training checkpoint into the run."""
    request = execution.job.load_state
    execution.engine.load(request.training_run_id, _read(execution), restore_optimizer=request.restore_optimizer)
    return training_pb2.LoadStateResponse(path=request.path)


def _read(execution: Execution) -> RunExport:
    if execution.read is None:
        raise InternalError(f"operation {execution.job.operation} was carried out before its files were read")
    return execution.read


def _alone(execution: Execution, job: PassJob) -> PassResult:
    (result,) = execution.engine.run_jobs([job])
    if isinstance(result, Exception):
        raise result
    return result


def _training_run(
    execution: Execution, run_id: str, run: Run, user_metadata: Mapping[str, str]
) -> training_pb2.TrainingRun:
    return training_pb2.TrainingRun(
        training_run_id=run_id,
        base_model=execution.job.base_model or execution.engine.info.base_model,
        lora_config=to_lora_config(run.config),
        user_metadata=user_metadata,
        create_time=execution.job.create_time,
        last_request_time=execution.job.create_time,
    )


def _save(execution: Execution, run_id: str, content: CheckpointContent) -> None:
    if _is_written(execution):
        return
    _write(execution, execution.engine.export_run(run_id), content)


def _write(execution: Execution, export: RunExport, content: CheckpointContent) -> None:
    try:
        with execution.checkpoints.write(execution.locations.target) as directory:
            recipients = execution.job.save_weights_for_sampler.age_encryption_recipients
            export.write_checkpoint(directory, execution.job.operation, content, recipients)
    except AlreadyExistsError:
        if not _is_written(execution):  # else an owner that was thought dead was faster
            raise


def _is_written(execution: Execution) -> bool:
    """Whether an earlier attempt of this operation has written its checkpoint."""
    checkpoints, target = execution.checkpoints, execution.locations.target
    return checkpoints.exists(target) and Manifest.read(checkpoints.open(target)).operation == execution.job.operation
