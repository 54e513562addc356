"""Carries out jobs: from the request in the queue to the response that its operation returns.

Runs on the engine's thread. Jobs arrive validated by the gateway; tinker paths arrive with the places that the worker
looked up for them. Carrying a job out again after a crash gives the same result: a checkpoint that an earlier attempt
of the same operation has written is taken as written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from services.core.errors import AlreadyExistsError, InternalError, ResourceExhaustedError
from services.core.losses import LOSSES
from services.core.names import training_run_id
from services.core.storage.checkpoint_store import CheckpointStore
from services.model.adapter_import import import_adapter
from services.model.device import is_out_of_memory
from services.model.manifest import DirectoryKind, Manifest
from services.trainer.engine.batch import read_example
from services.trainer.engine.checkpoint_files import read_training_checkpoint, write_checkpoint
from services.trainer.engine.isolation import run_isolated
from services.trainer.engine.local import TrainerEngine
from services.trainer.engine.lora_config import read_lora_config, write_lora_config
from services.trainer.engine.losses import resolve_loss
from services.trainer.engine.optimizer import AdamParams
from services.trainer.engine.pass_job import Outcome, Work
from services.trainer.engine.run_state import RunState
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import CheckpointKind, TinkerPath
from tinker_proto.tensor import from_array
from tinker_proto.v1 import checkpoint_pb2, training_pb2


@dataclass(frozen=True)
class Locations:
    """Where in the checkpoint store the checkpoints are that a job names by tinker path."""

    source: str = ""
    """The one to read: load_state and create_training_run_from_checkpoint, and import_checkpoint done again."""

    target: str = ""
    """The one to write: save_state, save_weights_for_sampler and import_checkpoint. Unique to the operation."""

    uploads: Sequence[Path] = ()
    """import_checkpoint only: adapter_config.json and adapter_model.safetensors; empty if they are gone."""


@dataclass(frozen=True)
class _Call:
    engine: TrainerEngine
    checkpoints: CheckpointStore
    job: job_pb2.Job
    locations: Locations


def execute(engine: TrainerEngine, checkpoints: CheckpointStore, job: job_pb2.Job, locations: Locations) -> Message:
    """Carries out a job and returns the message that its operation's response holds.

    Raises:
        PlatformError: the job fails and its run is as it was, the accumulated gradient included.
    """
    kind = job.WhichOneof("request")
    if kind is None or kind not in _CARRY_OUT:
        raise InternalError(f"a trainer was given job {job.operation} of kind {kind}")
    try:
        return _CARRY_OUT[kind](_Call(engine, checkpoints, job, locations))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"the trainer has no memory left to carry out {kind} of operation {job.operation}"
        raise ResourceExhaustedError(message, reason="OUT_OF_MEMORY") from error


def _create(call: _Call) -> Message:
    request = call.job.create_training_run
    run_id = training_run_id(request.session_id, request.training_run_seq_id)
    call.engine.create_run(run_id, read_lora_config(request.lora_config))
    return _created(call, run_id, request.user_metadata)


def _create_from_checkpoint(call: _Call) -> Message:
    request = call.job.create_training_run_from_checkpoint
    state = read_training_checkpoint(call.checkpoints.open(call.locations.source), call.engine.base)
    if not request.restore_optimizer:
        state.reset_optimizer()
    run_id = training_run_id(request.session_id, request.training_run_seq_id)
    call.engine.add_run(run_id, state)
    return _created(call, run_id, request.user_metadata)


def _created(call: _Call, run_id: str, user_metadata: Mapping[str, str]) -> Message:
    return training_pb2.CreateTrainingRunResponse(training_run=_new_run(call, run_id, user_metadata))


def _new_run(call: _Call, run_id: str, user_metadata: Mapping[str, str]) -> training_pb2.TrainingRun:
    return training_pb2.TrainingRun(
        training_run_id=run_id,
        base_model=call.engine.base.name,
        lora_config=write_lora_config(call.engine.run(run_id).config),
        user_metadata=user_metadata,
        create_time=call.job.create_time,
        last_request_time=call.job.create_time,
    )


def execute_together(engine: TrainerEngine, jobs: Sequence[job_pb2.Job]) -> list[Message | Exception]:
    """Carries out forward and forward_backward jobs of any runs in one pass; each has its response or its error."""
    work = [_read(job) for job in jobs]
    outcomes = iter(run_isolated(engine, [item for item in work if isinstance(item, Work)]))
    return [
        _response(job, next(outcomes)) if isinstance(item, Work) else item for job, item in zip(jobs, work, strict=True)
    ]


def _read(job: job_pb2.Job) -> Work | Exception:
    """What a pass asks."""
    backward = job.WhichOneof("request") == "forward_backward"
    request = job.forward_backward if backward else job.forward
    try:
        spec = LOSSES[request.loss_fn]
        examples = [read_example(datum, spec) for datum in request.data]
        return Work(request.training_run_id, examples, resolve_loss(request.loss_fn, request.loss_fn_config), backward)
    except Exception as error:
        return error


def _response(job: job_pb2.Job, outcome: Outcome | Exception) -> Message | Exception:
    if isinstance(outcome, Exception):
        return outcome
    backward = job.WhichOneof("request") == "forward_backward"
    response = training_pb2.ForwardBackwardResponse if backward else training_pb2.ForwardResponse
    return response(loss_fn_outputs=_outputs(outcome), metrics=outcome.metrics)


def _pass(call: _Call) -> Message:
    (result,) = execute_together(call.engine, [call.job])
    if isinstance(result, Exception):
        raise result
    return result


def _outputs(outcome: Outcome) -> list[training_pb2.LossFnOutput]:
    return [
        training_pb2.LossFnOutput(tensors={"logprobs": from_array(logprobs.numpy())}) for logprobs in outcome.logprobs
    ]


def _optim_step(call: _Call) -> Message:
    given = call.job.optim_step.adam_params
    params = AdamParams(**{field.name: getattr(given, field.name) for field in given.DESCRIPTOR.fields})
    norm = call.engine.optim_step(call.job.optim_step.training_run_id, params)
    return training_pb2.OptimStepResponse(metrics={"grad_norm:mean": norm})


def _save_state(call: _Call) -> Message:
    request = call.job.save_state
    _save(call, "training", request.training_run_id)
    return training_pb2.SaveStateResponse(
        path=str(TinkerPath(request.training_run_id, CheckpointKind.WEIGHTS, request.name))
    )


def _save_weights_for_sampler(call: _Call) -> Message:
    request = call.job.save_weights_for_sampler
    _save(call, "sampler", request.training_run_id)
    path = TinkerPath(request.training_run_id, CheckpointKind.SAMPLER_WEIGHTS, request.name)
    return training_pb2.SaveWeightsForSamplerResponse(path=str(path))


def _import(call: _Call) -> Message:
    request = call.job.import_checkpoint
    run_id = training_run_id(request.session_id, request.training_run_seq_id)
    written = call.locations.source or (call.locations.target if _is_written(call) else "")
    if written:
        call.engine.add_run(run_id, read_training_checkpoint(call.checkpoints.open(written), call.engine.base))
    else:
        config, weights = call.locations.uploads
        adapter = import_adapter(config, weights, call.engine.base, rename_base_model=request.rename_base_model)
        call.engine.add_run(run_id, RunState(adapter))
        try:
            _save(call, "training", run_id)
        except Exception:
            call.engine.drop_run(run_id)
            raise
    path = str(TinkerPath(run_id, CheckpointKind.WEIGHTS, request.name))
    run = _new_run(call, run_id, request.user_metadata)
    return checkpoint_pb2.ImportCheckpointResponse(path=path, training_run=run)


def _save(call: _Call, kind: DirectoryKind, run_id: str) -> None:
    if _is_written(call):
        return
    state = call.engine.run(run_id)
    manifest = Manifest(kind, run_id, call.engine.base.name, state.config, call.job.operation)
    try:
        with call.checkpoints.write(call.locations.target) as directory:
            write_checkpoint(directory, state, call.engine.base, manifest)
    except AlreadyExistsError:
        if not _is_written(call):  # else an owner that was thought dead was faster
            raise


def _is_written(call: _Call) -> bool:
    """Whether an earlier attempt of this operation has written its checkpoint."""
    checkpoints, target = call.checkpoints, call.locations.target
    return checkpoints.exists(target) and Manifest.read(checkpoints.open(target)).operation == call.job.operation


def _load_state(call: _Call) -> Message:
    request = call.job.load_state
    state = read_training_checkpoint(call.checkpoints.open(call.locations.source), call.engine.base)
    call.engine.load(request.training_run_id, state, restore_optimizer=request.restore_optimizer)
    return training_pb2.LoadStateResponse(path=request.path)


_CARRY_OUT: Mapping[str, Callable[[_Call], Message]] = {
    "create_training_run": _create,
    "create_training_run_from_checkpoint": _create_from_checkpoint,
    "forward": _pass,
    "forward_backward": _pass,
    "optim_step": _optim_step,
    "save_state": _save_state,
    "load_state": _load_state,
    "save_weights_for_sampler": _save_weights_for_sampler,
    "import_checkpoint": _import,
}
