"""Checks of training requests."""

from __future__ import annotations

import re
from typing import assert_never

from services.core.errors import InvalidArgumentError, quoted
from services.core.linears import ADAPTABLE_LINEARS
from services.gateway.validation.data import check_data, check_loss
from services.gateway.validation.fields import (
    check_checkpoint_name,
    check_finite,
    check_metadata,
    check_range,
    check_ttl,
    parse_path,
)
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import CheckpointKind, TinkerPath
from tinker_proto.v1 import training_pb2

MAX_LORA_ALPHA = 1 << 20
MAX_AGE_RECIPIENTS = 20
_AGE_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{58}")
"""The form of a public key of age (Bech32); the trainer that encrypts verifies its checksum."""

RunRequest = (
    training_pb2.ForwardBackwardRequest
    | training_pb2.ForwardRequest
    | training_pb2.OptimStepRequest
    | training_pb2.SaveStateRequest
    | training_pb2.LoadStateRequest
    | training_pb2.SaveWeightsForSamplerRequest
)


def check_run_request(request: RunRequest, limits: job_pb2.WorkerStatus) -> None:
    """Refuses a request that its run could not carry out, by the path of the field at fault."""
    match request:
        case training_pb2.ForwardBackwardRequest() | training_pb2.ForwardRequest():
            spec, options = check_loss(request.loss_fn, request.loss_fn_config, limits)
            check_data(request.data, spec, options, limits)
        case training_pb2.OptimStepRequest():
            check_adam_params(request.adam_params)
        case training_pb2.SaveStateRequest():
            check_checkpoint_name("name", request.name)
            _check_labels(request)
        case training_pb2.SaveWeightsForSamplerRequest():
            if request.name:
                check_checkpoint_name("name", request.name)
            _check_labels(request)
            _check_unnamed(request)
            _check_external(request)
        case training_pb2.LoadStateRequest():
            training_path("path", request.path)
        case _:
            assert_never(request)


def _check_labels(request: training_pb2.SaveStateRequest | training_pb2.SaveWeightsForSamplerRequest) -> None:
    check_ttl("ttl_seconds", request)
    check_metadata("user_metadata", request.user_metadata)


def _check_unnamed(request: training_pb2.SaveWeightsForSamplerRequest) -> None:
    if not request.for_sampling_session:
        return
    if request.name:
        raise InvalidArgumentError.must_be("name", "empty if for_sampling_session is set", quoted(request.name))
    if request.HasField("ttl_seconds"):
        rule = "absent if for_sampling_session is set"
        raise InvalidArgumentError.must_be("ttl_seconds", rule, request.ttl_seconds)


def _check_external(request: training_pb2.SaveWeightsForSamplerRequest) -> None:
    if request.external and not request.name:
        raise InvalidArgumentError.must_be("name", "set if external is set", quoted(""))
    field, recipients = "age_encryption_recipients", request.age_encryption_recipients
    if recipients and not request.external:
        raise InvalidArgumentError.must_be(field, "empty if external is not set", len(recipients))
    if len(recipients) > MAX_AGE_RECIPIENTS:
        raise InvalidArgumentError.must_be(field, f"at most {MAX_AGE_RECIPIENTS} public keys", len(recipients))
    for i, recipient in enumerate(recipients):
        if not _AGE_RECIPIENT.fullmatch(recipient):
            rule = "a public key of age, as age-keygen prints it: age1..."
            raise InvalidArgumentError.must_be(f"{field}[{i}]", rule, quoted(recipient))


def check_lora_config(config: training_pb2.LoraConfig, limits: job_pb2.WorkerStatus) -> None:
    """Refuses a completed config with a rank or alpha out of range, unknown targets, or nothing to adapt."""
    for name in ("own_alpha", "rank_pattern", "alpha_pattern"):
        if any(descriptor.name == name for descriptor, _ in config.ListFields()):
            rule = "absent: only an imported adapter has one"
            raise InvalidArgumentError.must_be(f"lora_config.{name}", rule, quoted(str(getattr(config, name))))
    check_range("lora_config.rank", config.rank, 1, limits.max_lora_rank)
    check_range("lora_config.alpha", config.alpha, 1, MAX_LORA_ALPHA)
    targets, adaptable = list(config.target_modules), list(limits.target_modules) or ADAPTABLE_LINEARS
    for i, name in enumerate(targets):
        field = f"lora_config.target_modules[{i}]"
        if name not in adaptable:
            raise InvalidArgumentError.must_be(field, f"one of {', '.join(adaptable)}", quoted(name))
        if name in targets[:i]:
            raise InvalidArgumentError.must_be(field, "different from the entries before it", quoted(name))
    for name in ("train_mlp", "train_attn", "train_unembed"):
        if targets and config.HasField(name):  # type: ignore[arg-type]
            rule, got = f"empty if {name} is set", quoted(targets)
            raise InvalidArgumentError.must_be("lora_config.target_modules", rule, got)
    if not targets and not (config.train_mlp or config.train_attn or config.train_unembed):
        rule = "true in at least one of train_mlp, train_attn and train_unembed"
        raise InvalidArgumentError.must_be("lora_config", rule, "false in all")


def check_adam_params(params: training_pb2.AdamParams) -> None:
    """Refuses missing parameters and values that AdamW has no meaning for."""
    present = {descriptor.name for descriptor, _ in params.ListFields()}
    for descriptor in params.DESCRIPTOR.fields:
        field = f"adam_params.{descriptor.name}"
        if descriptor.name not in present:
            raise InvalidArgumentError.at(field, "required, as all six parameters are")
        check_finite(field, getattr(params, descriptor.name))
    for name in ("learning_rate", "weight_decay"):
        if getattr(params, name) < 0:
            raise InvalidArgumentError.must_be(f"adam_params.{name}", "at least 0", getattr(params, name))
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(params, name) < 1:
            raise InvalidArgumentError.must_be(f"adam_params.{name}", "at least 0 and below 1", getattr(params, name))
    if params.eps <= 0:
        raise InvalidArgumentError.must_be("adam_params.eps", "above 0", params.eps)


def training_path(field: str, path: str) -> TinkerPath:
    """The full path of a training checkpoint; the two-part form means one.

    Raises:
        InvalidArgumentError: it is no path, or another checkpoint's.
    """
    parsed = parse_path(field, path)
    if parsed.kind not in (None, CheckpointKind.WEIGHTS):
        noun = "an external" if parsed.kind is CheckpointKind.EXTERNAL_WEIGHTS else "a sampler"
        rule, got = "the path of a training checkpoint, as save_state writes it", f"{noun} checkpoint, {path}"
        raise InvalidArgumentError.must_be(field, rule, got, reason="NOT_A_TRAINING_CHECKPOINT")
    return TinkerPath(parsed.training_run_id, CheckpointKind.WEIGHTS, parsed.name)
