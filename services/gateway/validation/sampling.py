"""Checks of sampling requests."""

from __future__ import annotations

import numpy as np

from services.core.errors import InvalidArgumentError
from services.core.sampling_limits import MAX_ALT_TOKENS, MAX_SAMPLES, MAX_TOPK_LOGPROBS, NO_TARGET
from services.gateway.validation.data import check_model_input, check_tensor, check_vocabulary
from services.gateway.validation.fields import check_range
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import data_pb2, sampling_pb2

MAX_TARGETS = 1024
MAX_STOPS = 64
MAX_STOP_BYTES = 256
MAX_TEMPERATURE = 1e6


def check_sample(request: sampling_pb2.SampleRequest, limits: job_pb2.WorkerStatus) -> None:
    """Refuses a request that no sampler could carry out, by the path of the field at fault."""
    length = check_model_input("prompt", request.prompt, limits)
    check_range("num_samples", request.num_samples, 0, MAX_SAMPLES)
    check_range("topk_prompt_logprobs", request.topk_prompt_logprobs, 0, min(MAX_TOPK_LOGPROBS, limits.vocab_size))
    check_range("topk_sample_logprobs", request.topk_sample_logprobs, 0, min(MAX_TOPK_LOGPROBS, limits.vocab_size))
    if request.HasField("target_prompt_logprobs"):
        _check_targets("target_prompt_logprobs", request.target_prompt_logprobs, length, limits.vocab_size)
    check_range("prompt_alt_tokens_k", request.prompt_alt_tokens_k, 0, MAX_ALT_TOKENS)
    if request.HasField("prompt_logprobs_last_n"):
        check_range("prompt_logprobs_last_n", request.prompt_logprobs_last_n, 1, length)
        if request.prompt_alt_tokens_k:
            rule = "0 with prompt_logprobs_last_n"
            raise InvalidArgumentError.must_be("prompt_alt_tokens_k", rule, request.prompt_alt_tokens_k)
        scored = request.include_prompt_logprobs or request.topk_prompt_logprobs
        if not scored and not request.HasField("target_prompt_logprobs"):
            message = "requires include_prompt_logprobs, topk_prompt_logprobs or target_prompt_logprobs"
            raise InvalidArgumentError.at("prompt_logprobs_last_n", message)
    _check_sampling_params(request.sampling_params, length, limits)


def check_compute_logprobs(request: sampling_pb2.ComputeLogprobsRequest, limits: job_pb2.WorkerStatus) -> None:
    """Refuses a request that no sampler could carry out, by the path of the field at fault."""
    length = check_model_input("prompt", request.prompt, limits)
    if request.HasField("prompt_logprobs_last_n"):
        check_range("prompt_logprobs_last_n", request.prompt_logprobs_last_n, 1, length)


def check_merge_weights(*, has_checkpoint: bool) -> None:
    """Refuses a merge in a sampling session without a pinned checkpoint."""
    if not has_checkpoint:
        rule, got = "a sampling session opened with model_path", "one of a base model, with nothing to merge"
        raise InvalidArgumentError.must_be("sampling_session_id", rule, got)


def _check_targets(field: str, tensor: data_pb2.Tensor, length: int, vocab_size: int) -> None:
    array = check_tensor(field, tensor, np.int64, unlisted=NO_TARGET)
    if array.ndim != 2 or array.shape[0] != length or not 1 <= array.shape[1] <= MAX_TARGETS:
        rule = f"of shape [{length}, K], a row for each prompt token and K from 1 to {MAX_TARGETS}"
        raise InvalidArgumentError.must_be(field, rule, str(list(array.shape)), reason="BAD_SHAPE")
    check_vocabulary(field, array[array != NO_TARGET], vocab_size)


def _check_sampling_params(
    params: sampling_pb2.SamplingParams, prompt_length: int, limits: job_pb2.WorkerStatus
) -> None:
    context = limits.max_context_length
    most_tokens = context - prompt_length
    if most_tokens < 1:
        rule = f"shorter than the context of {context} tokens"
        raise InvalidArgumentError.must_be("prompt", rule, prompt_length, reason="BAD_LENGTH")
    if params.HasField("max_tokens") and not 1 <= params.max_tokens <= most_tokens:
        rule = f"from 1 to {most_tokens}: prompt ({prompt_length}) and max_tokens fit the context of {context}"
        raise InvalidArgumentError.must_be("sampling_params.max_tokens", rule, params.max_tokens, reason="BAD_LENGTH")
    if params.HasField("temperature"):
        check_range("sampling_params.temperature", params.temperature, 0, MAX_TEMPERATURE)
    if params.HasField("top_p") and not 0 < params.top_p <= 1:
        raise InvalidArgumentError.must_be("sampling_params.top_p", "above 0 and at most 1", params.top_p)
    if params.HasField("top_k") and params.top_k < -1:
        raise InvalidArgumentError.must_be("sampling_params.top_k", "at least 1, or -1 or 0 to keep all", params.top_k)
    _check_stop(params.stop, limits.vocab_size)


def _check_stop(stop: sampling_pb2.Stop, vocab_size: int) -> None:
    field = "sampling_params.stop"
    if stop.strings and stop.token_ids:
        raise InvalidArgumentError.must_be(field, "either strings or token_ids", "both")
    for name, stops in (("strings", stop.strings), ("token_ids", stop.token_ids)):
        if len(stops) > MAX_STOPS:
            raise InvalidArgumentError.must_be(f"{field}.{name}", f"at most {MAX_STOPS} entries", len(stops))
    for i, text in enumerate(stop.strings):
        if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
            rule = f"from 1 to {MAX_STOP_BYTES} bytes long"
            raise InvalidArgumentError.must_be(f"{field}.strings[{i}]", rule, len(text.encode()))
    for i, token in enumerate(stop.token_ids):
        check_range(f"{field}.token_ids[{i}]", token, 0, vocab_size - 1)
