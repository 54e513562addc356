"""Between the protos of the queue and the values of the engine. No torch.

This file fills in the defaults of the contract. A job has its seed already, which the contract leaves to the server.
Field paths in errors are those of the request that the client sent.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from services.core.chunks import text_ids
from services.core.errors import InvalidArgumentError
from services.core.sampling_limits import NO_TARGET
from services.sampler.request import (
    GenerationRequest,
    GenerationResult,
    SampledTokens,
    SamplingParams,
    StopRule,
    TokenDelta,
    TopkRow,
)
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.tensor import from_array, to_array
from tinker_proto.v1 import data_pb2, sampling_pb2

_STOP_REASONS = {
    "stop": sampling_pb2.StopReason.STOP_REASON_STOP,
    "length": sampling_pb2.StopReason.STOP_REASON_LENGTH,
}
_UNFINISHED = sampling_pb2.StopReason.STOP_REASON_UNSPECIFIED


def to_request(
    job: job_pb2.Job, *, adapter: Path | None, eos_token_ids: Collection[int], max_context_length: int
) -> GenerationRequest:
    """A `sample` or `compute_logprobs` job as the engine takes it.

    Args:
        job: the job.
        adapter: directory of the checkpoint that the job is pinned to; None for the base model.
        eos_token_ids: the base model's end-of-sequence tokens.
        max_context_length: the engine's.

    Raises:
        InvalidArgumentError: the job holds another request, or one that cannot be carried out.
    """
    kind = job.WhichOneof("request")
    if kind == "compute_logprobs":
        return GenerationRequest(
            name=job.operation,
            prompt=tuple(text_ids("prompt", job.compute_logprobs.prompt).tolist()),
            num_samples=0,
            params=SamplingParams(max_tokens=0),
            adapter=adapter,
            tenant=job.tenant,
            include_prompt_logprobs=True,
            prompt_logprobs_last_n=_last_n(job.compute_logprobs),
        )
    if kind != "sample":
        raise InvalidArgumentError.must_be("request", "a sample or compute_logprobs", kind)
    prompt = tuple(text_ids("prompt", job.sample.prompt).tolist())
    return GenerationRequest(
        name=job.operation,
        prompt=prompt,
        num_samples=job.sample.num_samples or 1,
        params=_params(job.sample.sampling_params, eos_token_ids, max_context_length - len(prompt)),
        adapter=adapter,
        tenant=job.tenant,
        include_prompt_logprobs=job.sample.include_prompt_logprobs,
        topk_prompt_logprobs=job.sample.topk_prompt_logprobs,
        target_prompt_tokens=_targets(job.sample),
        prompt_logprobs_last_n=_last_n(job.sample),
        prompt_alt_tokens=job.sample.prompt_alt_tokens_k,
        topk_sample_logprobs=job.sample.topk_sample_logprobs,
        include_raw_logprobs=job.sample.include_raw_logprobs,
        streamed=job.streamed,
    )


def to_response(
    kind: str, result: GenerationResult, targets: data_pb2.Tensor | None
) -> sampling_pb2.SampleResponse | sampling_pb2.ComputeLogprobsResponse:
    """The answer to a job of this kind; `targets` as `to_sample_response` has them."""
    return to_logprobs_response(result) if kind == "compute_logprobs" else to_sample_response(result, targets)


def to_sample_response(result: GenerationResult, targets: data_pb2.Tensor | None = None) -> sampling_pb2.SampleResponse:
    """The answer to a `sample` job.

    Args:
        result: what the engine has computed.
        targets: the job's target_prompt_logprobs, whose layout the answer has; None: there are none.
    """
    return sampling_pb2.SampleResponse(
        sequences=[_sequence(sampled) for sampled in result.sequences],
        prompt_logprobs=result.prompt_logprobs or (),
        topk_prompt_logprobs=[_topk(row) for row in result.topk_prompt_logprobs or ()],
        target_prompt_logprobs=_target_scores(result, targets),
        prompt_cache_hit_tokens=result.prompt_cache_hit_tokens,
        prompt_alt_tokens=_alt_tokens(result),
    )


def to_sampled_piece(delta: TokenDelta) -> sampling_pb2.SampledPiece:
    """New tokens of a streamed job."""
    return sampling_pb2.SampledPiece(
        sequence_index=delta.sequence_index,
        start=delta.start,
        tokens=delta.tokens,
        logprobs=delta.logprobs,
        stop_reason=_STOP_REASONS[delta.stop_reason] if delta.stop_reason else _UNFINISHED,
    )


def to_logprobs_response(result: GenerationResult) -> sampling_pb2.ComputeLogprobsResponse:
    """The answer to a `compute_logprobs` job."""
    return sampling_pb2.ComputeLogprobsResponse(logprobs=result.prompt_logprobs or ())


def _last_n(request: sampling_pb2.SampleRequest | sampling_pb2.ComputeLogprobsRequest) -> int | None:
    return request.prompt_logprobs_last_n if request.HasField("prompt_logprobs_last_n") else None


def _targets(request: sampling_pb2.SampleRequest) -> tuple[tuple[int, ...], ...] | None:
    if not request.HasField("target_prompt_logprobs"):
        return None
    targets = to_array(request.target_prompt_logprobs, unlisted=NO_TARGET)
    return tuple(tuple(row) for row in targets.tolist())


def _alt_tokens(result: GenerationResult) -> sampling_pb2.PromptAltTokens | None:
    rows = result.prompt_alt_tokens
    if rows is None:
        return None
    return sampling_pb2.PromptAltTokens(
        tokens=from_array(np.array([row.tokens for row in rows], dtype=np.int64)),
        logprobs=from_array(np.array([row.logprobs for row in rows], dtype=np.float32)),
    )


def _target_scores(result: GenerationResult, targets: data_pb2.Tensor | None) -> data_pb2.Tensor | None:
    if result.target_prompt_logprobs is None:
        return None
    scores = np.array(result.target_prompt_logprobs, dtype=np.float32)
    if targets is None or targets.WhichOneof("layout") != "csr":
        return from_array(scores)
    listed = np.diff(np.frombuffer(targets.csr.crow_indices, "<i8"))
    columns = np.frombuffer(targets.csr.col_indices, "<i8")
    values = scores[np.repeat(np.arange(len(listed)), listed), columns].astype("<f4")
    csr = data_pb2.SparseCsr(
        values=values.tobytes(), crow_indices=targets.csr.crow_indices, col_indices=targets.csr.col_indices
    )
    return data_pb2.Tensor(dtype=data_pb2.DATA_TYPE_FLOAT32, shape=scores.shape, csr=csr)


def _sequence(sampled: SampledTokens) -> sampling_pb2.SampledSequence:
    return sampling_pb2.SampledSequence(
        tokens=sampled.tokens,
        logprobs=sampled.logprobs,
        stop_reason=_STOP_REASONS[sampled.stop_reason],
        topk_logprobs=[_topk(row) for row in sampled.topk_logprobs or ()],
        raw_logprobs=sampled.raw_logprobs or (),
    )


def _params(params: sampling_pb2.SamplingParams, eos_token_ids: Collection[int], most_tokens: int) -> SamplingParams:
    """Sampling parameters; `most_tokens` is how many fit into the context after the prompt."""
    if not params.HasField("seed"):
        raise InvalidArgumentError.must_be("sampling_params.seed", "set in a job")
    return SamplingParams(
        max_tokens=params.max_tokens if params.HasField("max_tokens") else most_tokens,
        seed=params.seed,
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_k=params.top_k if params.HasField("top_k") else -1,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        stop=_stop(params.stop, eos_token_ids) if params.HasField("stop") else StopRule(frozenset(eos_token_ids)),
    )


def _stop(stop: sampling_pb2.Stop, eos_token_ids: Collection[int]) -> StopRule:
    """Strings leave the end-of-sequence tokens in force, token ids replace them, and an empty message lifts them."""
    if stop.strings and stop.token_ids:
        raise InvalidArgumentError.must_be("sampling_params.stop", "strings or token_ids", "both")
    if "" in stop.strings:
        raise InvalidArgumentError.must_be("sampling_params.stop.strings", "of 1 to 256 bytes each", "an empty one")
    if stop.strings:
        return StopRule(frozenset(eos_token_ids), tuple(string.encode() for string in stop.strings))
    return StopRule(frozenset(stop.token_ids))


def _topk(row: TopkRow) -> sampling_pb2.TopkLogprobs:
    return sampling_pb2.TopkLogprobs(token_ids=row.token_ids, logprobs=row.logprobs)
