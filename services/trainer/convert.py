"""Between the protos of the queue and the values of the engine. No torch.

A request arrives here validated by the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from services.core.chunks import text_ids
from services.core.losses import LOSSES, LossSpec
from services.model.adapter_config import AdapterConfig
from services.trainer.values import AdamParams, Example, PassJob, PassResult
from tinker_proto.tensor import from_array, to_array
from tinker_proto.v1 import data_pb2, training_pb2

_FLAGS = ("train_attn", "train_mlp", "train_unembed")

PassRequest = training_pb2.ForwardRequest | training_pb2.ForwardBackwardRequest


def to_pass_job(request: PassRequest) -> PassJob:
    """The job of a forward or a forward_backward.

    Raises:
        InvalidArgumentError: names an option of the loss that is not allowed.
    """
    spec = LOSSES[request.loss_fn]
    options = spec.options(request.loss_fn_config)
    is_by_token = any(name in datum.loss_fn_inputs for datum in request.data for name in spec.by_token)
    thresholds = {name: options[name] for name in spec.by_token} if is_by_token else {}
    return PassJob(
        request.training_run_id,
        [read_example(datum, spec, thresholds) for datum in request.data],
        spec,
        options,
        backward=isinstance(request, training_pb2.ForwardBackwardRequest),
    )


def read_example(
    datum: data_pb2.Datum, spec: LossSpec, defaults: Mapping[str, float] = MappingProxyType({})
) -> Example:
    """A validated datum for a loss function; `defaults` are values of inputs that it need not have."""
    arrays = {name: to_array(tensor) for name, tensor in datum.loss_fn_inputs.items()}
    targets = arrays.pop("target_tokens")
    arrays = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
    for name in spec.optional:
        arrays.setdefault(name, np.ones(targets.shape, np.float32))
    for name, value in defaults.items():
        arrays.setdefault(name, np.full(targets.shape, value, np.float32))
    mask = arrays.pop("mask")
    arrays[spec.factor] = arrays.get(spec.factor, np.float32(1)) * mask
    rows = len(targets)
    return Example(
        tokens=text_ids("model_input", datum.model_input),
        targets=targets.reshape(rows, -1),
        inputs={name: array.reshape(rows, -1) for name, array in arrays.items()},
        shape=targets.shape,
    )


def to_loss_fn_outputs(result: PassResult) -> list[training_pb2.LossFnOutput]:
    """What a client gets of each datum."""
    return [training_pb2.LossFnOutput(tensors={"logprobs": from_array(logprobs)}) for logprobs in result.logprobs]


def to_adam_params(request: training_pb2.AdamParams) -> AdamParams:
    """The hyperparameters of a step; the gateway has filled in every default."""
    return AdamParams(**{field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields})


def to_adapter_config(request: training_pb2.LoraConfig) -> AdapterConfig:
    """The adapter that a run is to have; the gateway has filled in every default."""
    present = {descriptor.name for descriptor, _ in request.ListFields()}
    return AdapterConfig(
        rank=request.rank,
        alpha=request.alpha if request.HasField("alpha") else AdapterConfig.alpha,
        **{name: getattr(request, name) for name in _FLAGS if name in present},
        seed=request.seed if request.HasField("seed") else None,
        use_rslora=request.use_rslora,
        target_modules=tuple(request.target_modules),
    )


def to_lora_config(config: AdapterConfig) -> training_pb2.LoraConfig:
    """What a client reads about an adapter; explicit targets take the place of the three flags."""
    is_whole = isinstance(config.alpha, int) and config.alpha >= 1
    message = training_pb2.LoraConfig(
        rank=config.rank,
        seed=config.seed,
        alpha=int(config.alpha) if is_whole else None,
        own_alpha=None if is_whole else config.alpha,
        use_rslora=config.use_rslora,
        target_modules=config.target_modules,
        rank_pattern=config.rank_pattern,
        alpha_pattern=config.alpha_pattern,
    )
    if not config.target_modules:
        for name in _FLAGS:
            setattr(message, name, getattr(config, name))
    return message
