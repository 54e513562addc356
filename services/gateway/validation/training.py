"""Checks of training requests."""

from __future__ import annotations

from services.core.errors import InvalidArgumentError
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
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import training_pb2

MAX_LORA_ALPHA = 1 << 20

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
            spec = check_loss(request.loss_fn, request.loss_fn_config)
            check_data(request.data, spec, limits)
        case training_pb2.OptimStepRequest():
            check_adam_params(request.adam_params)
        case training_pb2.SaveStateRequest():
            check_checkpoint_name("name", request.name)
            _check_labels(request)
        case training_pb2.SaveWeightsForSamplerRequest():
            if request.name:
                check_checkpoint_name("name", request.name)
            _check_labels(request)
        case training_pb2.LoadStateRequest():
            training_path("path", request.path)


def _check_labels(request: training_pb2.SaveStateRequest | training_pb2.SaveWeightsForSamplerRequest) -> None:
    check_ttl("ttl_seconds", request)
    check_metadata("user_metadata", request.user_metadata)


def check_lora_config(config: training_pb2.LoraConfig, limits: job_pb2.WorkerStatus) -> None:
    """Refuses a completed config with a rank or alpha out of range, unknown targets, or nothing to adapt."""
    check_range("lora_config.rank", config.rank, 1, limits.max_lora_rank)
    check_range("lora_config.alpha", config.alpha, 1, MAX_LORA_ALPHA)
    targets = list(config.target_modules)
    for i, name in enumerate(targets):
        field = f"lora_config.target_modules[{i}]"
        if name not in ADAPTABLE_LINEARS:
            raise InvalidArgumentError.at(field, f"is {name[:100]!r}; allowed are {', '.join(ADAPTABLE_LINEARS)}")
        if name in targets[:i]:
            raise InvalidArgumentError.at(field, f"is {name!r} a second time; allowed is each once")
    for name in ("train_mlp", "train_attn", "train_unembed"):
        if targets and config.HasField(name):  # type: ignore[arg-type]
            message = f"is given together with {name}; allowed is one way to say what is adapted"
            raise InvalidArgumentError.at("lora_config.target_modules", message)
    if not targets and not (config.train_mlp or config.train_attn or config.train_unembed):
        message = "train_mlp, train_attn and train_unembed are all false; allowed is at least one of them true"
        raise InvalidArgumentError.at("lora_config", message)


def check_adam_params(params: training_pb2.AdamParams) -> None:
    """Refuses missing parameters and values that AdamW has no meaning for."""
    given = {descriptor.name for descriptor, _ in params.ListFields()}
    for descriptor in params.DESCRIPTOR.fields:
        field = f"adam_params.{descriptor.name}"
        if descriptor.name not in given:
            raise InvalidArgumentError.at(field, "is missing; all six parameters are required")
        check_finite(field, getattr(params, descriptor.name))
    for name in ("learning_rate", "weight_decay"):
        if getattr(params, name) < 0:
            raise InvalidArgumentError.at(f"adam_params.{name}", f"is {getattr(params, name):g}; allowed is 0 or more")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(params, name) < 1:
            message = f"is {getattr(params, name):g}; allowed are 0 to 1, 1 excluded"
            raise InvalidArgumentError.at(f"adam_params.{name}", message)
    if params.eps <= 0:
        raise InvalidArgumentError.at("adam_params.eps", f"is {params.eps:g}; allowed is more than 0")


def training_path(field: str, path: str) -> TinkerPath:
    """The full path of a training checkpoint; the two-part form means one.

    Raises:
        InvalidArgumentError: it is no path, or a sampler checkpoint's.
    """
    parsed = parse_path(field, path)
    if parsed.kind == "sampler_weights":
        message = f"{path} is a sampler checkpoint, which cannot be loaded for training; allowed is save_state's path"
        raise InvalidArgumentError.at(field, message, reason="NOT_A_TRAINING_CHECKPOINT")
    return TinkerPath(parsed.training_run_id, "weights", parsed.name)
