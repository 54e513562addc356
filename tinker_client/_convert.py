"""The client's types ↔ the contract's messages, and nothing else.

A value that does not fit its field is a ValueError that names it. All six AdamW parameters are always sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from tinker_client import types
from tinker_client._tensor_data import TensorData
from tinker_proto.tensor import from_array, to_array
from tinker_proto.v1 import capability_pb2, data_pb2, sampling_pb2, training_pb2

_STOP_REASONS: dict[int, types.StopReason] = {
    sampling_pb2.STOP_REASON_STOP: "stop",
    sampling_pb2.STOP_REASON_LENGTH: "length",
}


def model_input_to_proto(model_input: types.ModelInput) -> data_pb2.ModelInput:
    """Chunks in order."""
    return data_pb2.ModelInput(chunks=[_chunk_to_proto(chunk) for chunk in model_input.chunks])


def datum_to_proto(datum: types.Datum, index: int) -> data_pb2.Datum:
    """One example; errors name it as data[index]."""
    with naming(f"data[{index}]"):
        return data_pb2.Datum(
            model_input=model_input_to_proto(datum.model_input),
            loss_fn_inputs={name: from_array(tensor.to_numpy()) for name, tensor in datum.loss_fn_inputs.items()},
        )


def adam_params_to_proto(adam_params: types.AdamParams) -> training_pb2.AdamParams:
    """All six parameters, so that no default decides on the server."""
    with naming("adam_params"):
        return training_pb2.AdamParams(
            learning_rate=adam_params.learning_rate,
            beta1=adam_params.beta1,
            beta2=adam_params.beta2,
            eps=adam_params.eps,
            weight_decay=adam_params.weight_decay,
            grad_clip_norm=adam_params.grad_clip_norm,
        )


def set_lifetime_and_labels(
    request: training_pb2.SaveStateRequest | training_pb2.SaveWeightsForSamplerRequest,
    ttl_seconds: int | None,
    user_metadata: Mapping[str, str] | None,
) -> None:
    """What a checkpoint is to be kept for, and under which labels."""
    with naming("ttl_seconds"):
        if ttl_seconds is not None:
            request.ttl_seconds = ttl_seconds
    with naming("user_metadata"):
        request.user_metadata.update(user_metadata or {})


def lora_config_to_proto(config: types.LoraConfig) -> training_pb2.LoraConfig:
    """The adapter's shape: explicit targets, or the three flags."""
    with naming("lora_config"):
        shape = training_pb2.LoraConfig(
            rank=config.rank,
            seed=config.seed,
            alpha=config.alpha,  # type: ignore[arg-type]  # a fraction is refused by protobuf
            use_rslora=config.use_rslora,
            target_modules=config.target_modules,
        )
        if config.target_modules is None:
            shape.train_mlp = config.train_mlp
            shape.train_attn = config.train_attn
            shape.train_unembed = config.train_unembed
        return shape


def sampling_params_to_proto(params: types.SamplingParams) -> sampling_pb2.SamplingParams:
    """None stays absent, and an empty `stop` stays present."""
    with naming("sampling_params"):
        return sampling_pb2.SamplingParams(
            max_tokens=params.max_tokens,
            seed=params.seed,
            stop=_stop_to_proto(params.stop),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
        )


def forward_output(
    outputs: Sequence[training_pb2.LossFnOutput], metrics: Mapping[str, float]
) -> types.ForwardBackwardOutput:
    """A loss as the platform returned it."""
    tensors = [
        {name: TensorData.from_numpy(to_array(tensor)) for name, tensor in output.tensors.items()} for output in outputs
    ]
    return types.ForwardBackwardOutput(tensors, dict(metrics))


def targets_to_proto(targets: Sequence[Sequence[int]]) -> data_pb2.Tensor:
    """int64 [prompt length, K]."""
    with naming("target_prompt_logprobs"):
        array = np.asarray(targets)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise ValueError(
                f"must be integers of shape [prompt length, K] (got {array.dtype} of shape {list(array.shape)})"
            )
        return from_array(array.astype(np.int64))


def sample_response(response: sampling_pb2.SampleResponse) -> types.SampleResponse:
    """Completions; an empty field is one that was not asked for."""
    targets = response.target_prompt_logprobs if response.HasField("target_prompt_logprobs") else None
    return types.SampleResponse(
        [_sampled_sequence(item) for item in response.sequences],
        prompt_logprobs(response.prompt_logprobs) or None,
        [_topk(row) or None for row in response.topk_prompt_logprobs] or None,
        TensorData.from_numpy(to_array(targets)) if targets is not None else None,
        response.prompt_cache_hit_tokens,
        _alt_tokens(response.prompt_alt_tokens) if response.HasField("prompt_alt_tokens") else None,
    )


def _alt_tokens(drawn: sampling_pb2.PromptAltTokens) -> types.PromptAltTokens:
    tokens, logprobs = (TensorData.from_numpy(to_array(tensor)) for tensor in (drawn.tokens, drawn.logprobs))
    return types.PromptAltTokens(tokens, logprobs)


def stop_reason(reason: sampling_pb2.StopReason.ValueType) -> types.StopReason | None:
    """None while a sequence goes on."""
    return _STOP_REASONS.get(reason)


def prompt_logprobs(values: Sequence[float]) -> list[float | None]:
    """NaN, where nothing predicts the token, becomes None."""
    return [None if math.isnan(value) else value for value in values]


def capabilities(response: capability_pb2.GetServerCapabilitiesResponse) -> types.GetServerCapabilitiesResponse:
    """The base models served at this moment."""
    return types.GetServerCapabilitiesResponse(
        [
            types.SupportedModel(
                model_name=item.model_name,
                max_context_length=item.max_context_length,
                vocab_size=item.vocab_size,
                trainable=item.trainable,
                sampleable=item.sampleable,
                max_lora_rank=item.max_lora_rank,
                loss_fns=list(item.loss_fns),
            )
            for item in response.supported_models
        ]
    )


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Turns what a message's constructor says about a wrong value into a ValueError that names the field."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field}: {error}") from None


def _sampled_sequence(item: sampling_pb2.SampledSequence) -> types.SampledSequence:
    return types.SampledSequence(
        list(item.tokens),
        list(item.logprobs),
        _STOP_REASONS[item.stop_reason],
        [_topk(row) for row in item.topk_logprobs] or None,
        list(item.raw_logprobs) or None,
    )


def _topk(row: sampling_pb2.TopkLogprobs) -> types.TopkLogprobs:
    return list(zip(row.token_ids, row.logprobs, strict=True))


def _chunk_to_proto(chunk: types.ModelInputChunk) -> data_pb2.Chunk:
    if isinstance(chunk, types.EncodedTextChunk):
        return data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=chunk.tokens))
    if isinstance(chunk, types.ImageChunk):
        image = data_pb2.ImageChunk(data=chunk.data, format=chunk.format, expected_tokens=chunk.expected_tokens)
        return data_pb2.Chunk(image=image)
    raise ValueError(f"chunks: must be EncodedTextChunk or ImageChunk values (got {type(chunk).__name__})")


def _stop_to_proto(stop: str | Sequence[str] | Sequence[int] | None) -> sampling_pb2.Stop | None:
    if stop is None:
        return None
    if isinstance(stop, str):
        return sampling_pb2.Stop(strings=[stop])
    message = sampling_pb2.Stop()
    for item in stop:
        if isinstance(item, str):
            message.strings.append(item)
        else:
            message.token_ids.append(item)
    return message
