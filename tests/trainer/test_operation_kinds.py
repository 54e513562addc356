"""The kinds of operations are one set wherever they are spelled: the queue, the trainer, the sampler, the gateway."""

from __future__ import annotations

from typing import get_args

from services.gateway.submission import CreateRequest, SamplingRequest
from services.gateway.validation.training import RunRequest
from services.trainer.operation_kinds import CHECKPOINT_TYPES, KINDS
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import CheckpointKind
from tinker_proto.v1 import checkpoint_pb2

REQUESTS = {
    field.name: field.message_type.full_name for field in job_pb2.Job.DESCRIPTOR.oneofs_by_name["request"].fields
}
SAMPLING = {"sample", "compute_logprobs", "merge_weights"}


def full_names(*requests: type) -> set[str]:
    return {request.DESCRIPTOR.full_name for request in requests}


def test_a_job_is_of_a_training_runs_kind_or_of_a_samplers() -> None:
    assert REQUESTS.keys() == KINDS.keys() | SAMPLING
    assert not KINDS.keys() & SAMPLING


def test_the_gateway_validates_every_kind() -> None:
    of_runs = full_names(*get_args(RunRequest), *get_args(CreateRequest), checkpoint_pb2.ImportCheckpointRequest)
    assert of_runs == {REQUESTS[name] for name in KINDS}
    assert full_names(*get_args(SamplingRequest)) == {REQUESTS[name] for name in SAMPLING}


def test_a_kind_that_shares_a_pass_has_a_cost_and_a_history() -> None:
    for name, kind in KINDS.items():
        if kind.shared_pass is not None:
            assert kind.shared_pass.token_cost > 0, name
            assert kind.history, name


def test_saving_leaves_a_run_as_it_was_and_only_steps_are_steps() -> None:
    assert {name for name, kind in KINDS.items() if not kind.changes_run} == {
        "forward",
        "save_state",
        "save_weights_for_sampler",
    }
    assert {name for name, kind in KINDS.items() if kind.is_step} == {"optim_step"}


def test_every_kind_of_checkpoint_has_a_type() -> None:
    assert CHECKPOINT_TYPES.keys() == set(CheckpointKind)
