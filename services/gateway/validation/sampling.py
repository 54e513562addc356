"""Checks of sampling requests."""

from __future__ import annotations

from services.core.errors import InvalidArgumentError
from services.gateway.validation.data import check_model_input
from services.gateway.validation.fields import check_range
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

MAX_SAMPLES = 1024
MAX_TOPK_LOGPROBS = 100
MAX_STOPS = 64
MAX_STOP_BYTES = 256
MAX_TEMPERATURE = 1e6


def check_sample(request: sampling_pb2.SampleRequest, limits: job_pb2.WorkerStatus) -> None:
    """Refuses a request that no sampler could carry out, by the path of the field at fault."""
    length = check_model_input("prompt", request.prompt, limits)
    check_range("num_samples", request.num_samples, 0, MAX_SAMPLES)
    check_range("topk_prompt_logprobs", request.topk_prompt_logprobs, 0, min(MAX_TOPK_LOGPROBS, limits.vocab_size))
    _check_sampling_params(request.sampling_params, length, limits)


def _check_sampling_params(
    params: sampling_pb2.SamplingParams, prompt_length: int, limits: job_pb2.WorkerStatus
) -> None:
    room = limits.max_context_length - prompt_length
    if room < 1:
        message = f"has {prompt_length} tokens, which fills the context of {limits.max_context_length}: none can follow"
        raise InvalidArgumentError.at("prompt", message, reason="BAD_LENGTH")
    if params.HasField("max_tokens") and not 1 <= params.max_tokens <= room:
        message = (
            f"is {params.max_tokens}; allowed are 1 to {room}: prompt ({prompt_length}) and max_tokens together "
            f"must fit the context of {limits.max_context_length}"
        )
        raise InvalidArgumentError.at("sampling_params.max_tokens", message, reason="BAD_LENGTH")
    if params.HasField("temperature"):
        check_range("sampling_params.temperature", params.temperature, 0, MAX_TEMPERATURE)
    if params.HasField("top_p") and not 0 < params.top_p <= 1:
        raise InvalidArgumentError.at("sampling_params.top_p", f"is {params.top_p:g}; allowed are 0 to 1, 0 excluded")
    if params.HasField("top_k") and params.top_k < -1:
        message = f"is {params.top_k}; allowed are -1 and 0 (keep all) and more"
        raise InvalidArgumentError.at("sampling_params.top_k", message)
    _check_stop(params.stop, limits.vocab_size)


def _check_stop(stop: sampling_pb2.Stop, vocab_size: int) -> None:
    field = "sampling_params.stop"
    if stop.strings and stop.token_ids:
        raise InvalidArgumentError.at(field, "has strings and token_ids; allowed is one of the two")
    for name, stops in (("strings", stop.strings), ("token_ids", stop.token_ids)):
        if len(stops) > MAX_STOPS:
            raise InvalidArgumentError.at(f"{field}.{name}", f"has {len(stops)} entries; allowed are {MAX_STOPS}")
    for i, text in enumerate(stop.strings):
        if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
            message = f"has {len(text.encode())} bytes; allowed are 1 to {MAX_STOP_BYTES}"
            raise InvalidArgumentError.at(f"{field}.strings[{i}]", message)
    for i, token in enumerate(stop.token_ids):
        check_range(f"{field}.token_ids[{i}]", token, 0, vocab_size - 1)
