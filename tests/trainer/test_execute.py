"""Jobs from the queue to responses, through real protos, a real checkpoint store and a real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.core.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.local import LocalStorage
from services.trainer.engine.interface import TrainerEngine
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.execute import execute, prepared
from services.trainer.executors import Execution, Locations
from testing.training_data import ADAM, random_data
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.tensor import to_array
from tinker_proto.v1 import training_pb2

RUN = "s:train:0"
NOWHERE = Locations()


def carry_out(engine: TrainerEngine, checkpoints: CheckpointStore, job: job_pb2.Job, locations: Locations) -> Message:
    """The response of a job."""
    return execute(prepared(Execution(engine, checkpoints, job, locations))).response


class Trainer:
    """Sends jobs the way the worker does, numbering their operations."""

    def __init__(self, engine: LocalTrainerEngine, store: CheckpointStore) -> None:
        self.engine = engine
        self.store = store
        self.operations = 0

    def __call__(self, kind: str, request: Any, locations: Locations = NOWHERE, operation: str | None = None) -> Any:
        operation = operation or f"{RUN}:{self.operations}"
        self.operations += 1
        job = job_pb2.Job(operation=operation, tenant="t", create_time=Timestamp(seconds=7))
        getattr(job, kind).CopyFrom(request)
        return carry_out(self.engine, self.store, job_pb2.Job.FromString(job.SerializeToString()), locations)

    def create(self, number: int = 0, **config: Any) -> training_pb2.CreateTrainingRunResponse:
        config = {"rank": 4, "seed": 5} | config
        request = training_pb2.CreateTrainingRunRequest(
            session_id="s",
            training_run_seq_id=number,
            base_model=self.engine.base.name,
            lora_config=training_pb2.LoraConfig(**config),
            user_metadata={"who": "me"},
        )
        return self("create_training_run", request)

    def forward_backward(self, seed: int = 0, run: str = RUN) -> training_pb2.ForwardBackwardResponse:
        request = training_pb2.ForwardBackwardRequest(
            training_run_id=run, data=random_data("cross_entropy", (6, 4), seed=seed), loss_fn="cross_entropy"
        )
        return self("forward_backward", request)

    def optim_step(self, run: str = RUN, **change: float) -> training_pb2.OptimStepResponse:
        params = training_pb2.AdamParams(**{**vars(ADAM), **change})
        return self("optim_step", training_pb2.OptimStepRequest(training_run_id=run, adam_params=params))

    def save_state(
        self, location: str, name: str = "one", operation: str | None = None
    ) -> training_pb2.SaveStateResponse:
        request = training_pb2.SaveStateRequest(training_run_id=RUN, name=name)
        return self("save_state", request, Locations(target=location), operation)


@pytest.fixture
def trainer(engine: LocalTrainerEngine, tmp_path: Path) -> Trainer:
    return Trainer(engine, CheckpointStore(LocalStorage(tmp_path)))


def test_creating_a_run_tells_all_about_it(trainer: Trainer) -> None:
    run = trainer.create(train_mlp=False).training_run
    assert run.training_run_id == RUN
    assert run.base_model == "tiny-qwen3"
    assert run.user_metadata == {"who": "me"}
    assert run.create_time.seconds == 7
    config = run.lora_config
    assert (config.rank, config.seed) == (4, 5)
    assert (config.train_attn, config.train_mlp, config.train_unembed) == (True, False, True)
    assert "model.layers.0.mlp.up_proj" not in trainer.engine.run(RUN).weights.linears


def test_alpha_rslora_and_targets_reach_the_adapter_and_checkpoints(trainer: Trainer) -> None:
    trainer.create(alpha=6, use_rslora=True, target_modules=["v_proj", "lm_head"])
    state = trainer.engine.run(RUN)
    assert state.weights.scale_of("lm_head") == 3.0
    assert {name.rpartition(".")[2] for name in state.weights.linears} == {"v_proj", "lm_head"}
    trainer.save_state("place")
    request = training_pb2.CreateTrainingRunFromCheckpointRequest(
        session_id="s", training_run_seq_id=1, path=f"tinker://{RUN}/weights/one"
    )
    run = trainer("create_training_run_from_checkpoint", request, Locations(source="place")).training_run
    assert (run.lora_config.alpha, run.lora_config.use_rslora) == (6, True)
    assert list(run.lora_config.target_modules) == ["v_proj", "lm_head"]
    assert not run.lora_config.HasField("train_mlp")
    family = trainer.engine.base.family
    assert trainer.engine.run("s:train:1").config.shape(family) == state.config.shape(family)
    trainer.create(2)
    other = training_pb2.LoadStateRequest(training_run_id="s:train:2", path=f"tinker://{RUN}/weights/one")
    with pytest.raises(InvalidArgumentError, match=r"path: must be a checkpoint with the run's alpha, 32 \(got 6\)"):
        trainer("load_state", other, Locations(source="place"))


def test_a_loop_of_forward_backward_and_optim_step_learns(trainer: Trainer) -> None:
    trainer.create()
    data = random_data("cross_entropy", (6, 9), seed=0)
    for item in data:
        del item.loss_fn_inputs["weights"], item.loss_fn_inputs["mask"]
    request = training_pb2.ForwardBackwardRequest(training_run_id=RUN, data=data, loss_fn="cross_entropy")
    losses = []
    for _ in range(12):
        response = trainer("forward_backward", request)
        losses.append(response.metrics["loss:sum"])
        assert trainer.optim_step().metrics["grad_norm:mean"] > 0
    assert losses[-1] < losses[0] / 2
    logprobs = [to_array(output.tensors["logprobs"]) for output in response.loss_fn_outputs]
    assert [values.shape for values in logprobs] == [(6,), (9,)]
    assert {values.dtype for values in logprobs} == {np.dtype(np.float32)}
    assert -sum(values.sum() for values in logprobs) == pytest.approx(losses[-1], rel=1e-5)


def test_forward_is_forward_backward_without_a_gradient(trainer: Trainer) -> None:
    trainer.create()
    request = training_pb2.ForwardRequest(
        training_run_id=RUN,
        data=random_data("importance_sampling", (5,), k=2),
        loss_fn="importance_sampling",
    )
    forward = trainer("forward", request)
    assert not trainer.engine.run(RUN).gradient.any()
    backward_request = training_pb2.ForwardBackwardRequest(
        training_run_id=RUN, data=request.data, loss_fn="importance_sampling"
    )
    backward = trainer("forward_backward", backward_request)
    assert dict(forward.metrics) == dict(backward.metrics)
    assert forward.loss_fn_outputs == backward.loss_fn_outputs
    assert to_array(forward.loss_fn_outputs[0].tensors["logprobs"]).shape == (5, 2)


def test_save_and_load_with_and_without_optimizer(trainer: Trainer) -> None:
    trainer.create()
    trainer.forward_backward()
    trainer.optim_step()
    trainer.forward_backward(1)
    assert trainer.save_state("place").path == f"tinker://{RUN}/weights/one"
    state = trainer.engine.run(RUN)
    saved = [state.weights.flat.clone(), *(vector.clone() for vector in state.optimizer_vectors().values())]
    trainer.optim_step()
    for restore in (True, False):
        path = f"tinker://{RUN}/weights/one"
        request = training_pb2.LoadStateRequest(training_run_id=RUN, path=path, restore_optimizer=restore)
        assert trainer("load_state", request, Locations(source="place")).path == path
        assert torch.equal(state.weights.flat, saved[0])
        for vector, was in zip(state.optimizer_vectors().values(), saved[1:], strict=True):
            assert torch.equal(vector, was if restore else torch.zeros_like(was))
        assert state.step == (1 if restore else 0)


@pytest.mark.parametrize("restore", [True, False])
def test_a_run_from_a_checkpoint_takes_its_shape(trainer: Trainer, restore: bool) -> None:
    trainer.create(train_unembed=False)
    trainer.forward_backward()
    trainer.optim_step()
    trainer.save_state("place")
    request = training_pb2.CreateTrainingRunFromCheckpointRequest(
        session_id="s", training_run_seq_id=1, path=f"tinker://{RUN}/weights/one", restore_optimizer=restore
    )
    run = trainer("create_training_run_from_checkpoint", request, Locations(source="place")).training_run
    assert run.training_run_id == "s:train:1"
    assert (run.lora_config.rank, run.lora_config.seed, run.lora_config.train_unembed) == (4, 5, False)
    old, new = trainer.engine.run(RUN), trainer.engine.run("s:train:1")
    assert torch.equal(old.weights.flat, new.weights.flat)
    assert new.step == (1 if restore else 0)
    assert bool(new.exp_avg.any()) == restore


def test_a_sampler_checkpoint_holds_the_adapter_alone_and_stays_as_it_was(trainer: Trainer) -> None:
    trainer.create()
    request = training_pb2.SaveWeightsForSamplerRequest(training_run_id=RUN, name="s1")
    response = trainer("save_weights_for_sampler", request, Locations(target="place"))
    assert response.path == f"tinker://{RUN}/sampler_weights/s1"
    before = {path.name: path.read_bytes() for path in trainer.store.open("place").iterdir()}
    trainer.forward_backward()
    trainer.optim_step()
    assert {path.name: path.read_bytes() for path in trainer.store.open("place").iterdir()} == before
    load = training_pb2.LoadStateRequest(training_run_id=RUN, path=response.path)
    with pytest.raises(InvalidArgumentError, match="sampler checkpoint"):
        trainer("load_state", load, Locations(source="place"))


def test_a_save_that_is_carried_out_again_finds_its_own_files(trainer: Trainer) -> None:
    trainer.create()
    first = trainer.save_state("place", operation=f"{RUN}:8")
    assert trainer.save_state("place", operation=f"{RUN}:8") == first
    with pytest.raises(AlreadyExistsError):
        trainer.save_state("place", operation=f"{RUN}:9")


def test_failures_keep_the_run_usable(trainer: Trainer) -> None:
    trainer.create()
    trainer.forward_backward()
    state = trainer.engine.run(RUN)
    before = state.buffer.clone()
    with pytest.raises(FailedPreconditionError, match="smaller learning_rate"):
        trainer.optim_step(learning_rate=1e38, weight_decay=1e38)
    with pytest.raises(NotFoundError, match="gone"):
        trainer("load_state", training_pb2.LoadStateRequest(training_run_id=RUN), Locations(source="nowhere"))
    assert torch.equal(state.buffer, before)
    trainer.forward_backward()
    trainer.optim_step()
    assert state.weights.flat.isfinite().all()


def test_a_run_that_does_not_fit_the_memory_is_refused_and_leaves_nothing(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory for another run")

    with monkeypatch.context() as device:
        device.setattr("services.trainer.engine.local.RunState", full)
        with pytest.raises(ResourceExhaustedError, match="create_training_run of operation s:train:0:0") as refused:
            trainer.create()
    assert refused.value.reason == "OUT_OF_MEMORY"
    trainer.create()
    trainer.forward_backward()


def test_what_a_trainer_does_not_do_is_refused(trainer: Trainer) -> None:
    with pytest.raises(InternalError, match="of kind none"):
        carry_out(trainer.engine, trainer.store, job_pb2.Job(operation="s:train:0:3"), NOWHERE)
    sample = job_pb2.Job(operation="s:sample:0:3")
    sample.sample.SetInParent()
    with pytest.raises(InternalError, match="of kind sample"):
        carry_out(trainer.engine, trainer.store, sample, NOWHERE)
