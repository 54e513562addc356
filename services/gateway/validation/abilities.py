"""Checks that a base model's samplers can do what a request needs: a row an ability."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import assert_never

from services.core.abilities import Ability, announced, missing_ability
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

SamplingRequest = sampling_pb2.SampleRequest | sampling_pb2.ComputeLogprobsRequest | sampling_pb2.MergeWeightsRequest


def check_abilities(request: SamplingRequest, *, has_checkpoint: bool, limits: job_pb2.WorkerStatus) -> None:
    """Refuses a request that needs an ability which the samplers have not announced.

    Args:
        request: the request as the client sent it, before the server fills anything in.
        has_checkpoint: whether its sampling session has a pinned checkpoint.
        limits: what the base model's samplers announced.

    Raises:
        InvalidArgumentError: names the field that asks for the ability, and the base model.
    """
    present = announced(limits)
    for ability in Ability:
        if ability not in present and (field := NEEDED_AT[ability](request, has_checkpoint)):
            raise missing_ability(ability, field=field, base_model=limits.base_model)


def _adapters(request: SamplingRequest, has_checkpoint: bool) -> str:
    return "sampling_session_id" if has_checkpoint and not _merges(request) else ""


def _merge_weights(request: SamplingRequest, _: bool) -> str:
    return "sampling_session_id" if _merges(request) else ""


def _prompt_logprobs(request: SamplingRequest, _: bool) -> str:
    if isinstance(request, sampling_pb2.ComputeLogprobsRequest):
        return "prompt"
    return "include_prompt_logprobs" if _sample(request).include_prompt_logprobs else ""


def _topk_prompt_logprobs(request: SamplingRequest, _: bool) -> str:
    return "topk_prompt_logprobs" if _sample(request).topk_prompt_logprobs else ""


def _target_prompt_logprobs(request: SamplingRequest, _: bool) -> str:
    return "target_prompt_logprobs" if _sample(request).HasField("target_prompt_logprobs") else ""


def _prompt_alt_tokens(request: SamplingRequest, _: bool) -> str:
    return "prompt_alt_tokens_k" if _sample(request).prompt_alt_tokens_k else ""


def _raw_logprobs(request: SamplingRequest, _: bool) -> str:
    if _sample(request).include_raw_logprobs:
        return "include_raw_logprobs"
    return "topk_sample_logprobs" if _sample(request).topk_sample_logprobs else ""


def _unfiltered_logprobs(request: SamplingRequest, _: bool) -> str:
    params = _sample(request).sampling_params
    if not params.HasField("temperature") or params.temperature in (0, 1):
        return ""
    if params.top_k > 0:
        return "sampling_params.top_k"
    return "sampling_params.top_p" if params.HasField("top_p") and params.top_p < 1 else ""


def _seeds(request: SamplingRequest, _: bool) -> str:
    return "sampling_params.seed" if _sample(request).sampling_params.HasField("seed") else ""


def _stop_strings(request: SamplingRequest, _: bool) -> str:
    return "sampling_params.stop.strings" if _sample(request).sampling_params.stop.strings else ""


NEEDED_AT: Mapping[Ability, Callable[[SamplingRequest, bool], str]] = MappingProxyType(
    {
        Ability.ADAPTERS: _adapters,
        Ability.MERGE_WEIGHTS: _merge_weights,
        Ability.PROMPT_LOGPROBS: _prompt_logprobs,
        Ability.TOPK_PROMPT_LOGPROBS: _topk_prompt_logprobs,
        Ability.TARGET_PROMPT_LOGPROBS: _target_prompt_logprobs,
        Ability.PROMPT_ALT_TOKENS: _prompt_alt_tokens,
        Ability.RAW_LOGPROBS: _raw_logprobs,
        Ability.UNFILTERED_LOGPROBS: _unfiltered_logprobs,
        Ability.SEEDS: _seeds,
        Ability.STOP_STRINGS: _stop_strings,
    }
)
"""By ability: the path of the field with which a request asks for it; empty if the request does not need it.

Arguments are the request, and whether its sampling session has a pinned checkpoint.
"""


def _merges(request: SamplingRequest) -> bool:
    return isinstance(request, sampling_pb2.MergeWeightsRequest)


def _sample(request: SamplingRequest) -> sampling_pb2.SampleRequest:
    """The request if it is for a sample; else one that asks for nothing."""
    match request:
        case sampling_pb2.SampleRequest():
            return request
        case sampling_pb2.ComputeLogprobsRequest() | sampling_pb2.MergeWeightsRequest():
            return sampling_pb2.SampleRequest()
        case _:
            assert_never(request)
