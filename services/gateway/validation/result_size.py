"""The most bytes that the result of a sampling request can have, known before anything is computed.

    samples x max_tokens x (token + 4 + [4: raw] + [row of topk_sample_logprobs])
    + prompt tokens x ([4: logprobs] + [row of topk_prompt_logprobs] + [4 x targets] + [12 x drawn in its place])
    + FIXED_BYTES + samples x FIXED_BYTES

A token has as many bytes as the vocabulary's largest id as a varint. A row of the k likeliest tokens has
k x (token + 4) + ROW_BYTES. These are the sizes of tinker.v1.SampleResponse; the formula stands in docs/reliability.md.
"""

from __future__ import annotations

from services.core import chunks
from services.core.errors import InvalidArgumentError
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

FIXED_BYTES = 64
ROW_BYTES = 12
_FLOAT_BYTES = 4
_TOKEN_BYTES = 8
"""In an int64 tensor."""


def most_tokens(request: sampling_pb2.SampleRequest, limits: job_pb2.WorkerStatus) -> int:
    """Most tokens that one sample of a valid request may have."""
    params = request.sampling_params
    return params.max_tokens if params.HasField("max_tokens") else limits.max_context_length - _length(request)


def check_result_size(request: sampling_pb2.SampleRequest, limits: job_pb2.WorkerStatus, max_result_bytes: int) -> None:
    """Refuses a valid request whose result could be larger than `max_result_bytes`, by the field at fault."""
    prompt, sample, token = prompt_bytes(request, limits), sample_bytes(request, limits), _token_bytes(request, limits)
    samples, free = max(request.num_samples, 1), max_result_bytes - prompt
    size = prompt + samples * sample
    if size <= max_result_bytes:
        return
    if free >= sample:
        field, most, got = "num_samples", free // sample, samples
    elif free >= FIXED_BYTES + token:
        field, most, got = "sampling_params.max_tokens", (free - FIXED_BYTES) // token, most_tokens(request, limits)
    else:
        field, most, got = _largest_score(request), 0, _length(request)
    rule = f"at most {most}" if most else "of fewer tokens for each prompt token"
    rule += f", so that the result has at most {max_result_bytes} bytes (max_result_bytes) and not {size}"
    raise InvalidArgumentError.must_be(field, rule, got if most else f"{got} prompt tokens", reason="RESULT_TOO_LARGE")


def prompt_bytes(request: sampling_pb2.SampleRequest, limits: job_pb2.WorkerStatus) -> int:
    """Most bytes of the scores of a request's prompt."""
    row = _row_bytes(request.topk_prompt_logprobs, limits)
    own = _FLOAT_BYTES if request.include_prompt_logprobs else 0
    drawn = (_FLOAT_BYTES + _TOKEN_BYTES) * request.prompt_alt_tokens_k
    return FIXED_BYTES + _length(request) * (own + row + _FLOAT_BYTES * _targets(request) + drawn)


def sample_bytes(request: sampling_pb2.SampleRequest, limits: job_pb2.WorkerStatus) -> int:
    """Most bytes of one sample."""
    return FIXED_BYTES + most_tokens(request, limits) * _token_bytes(request, limits)


def _token_bytes(request: sampling_pb2.SampleRequest, limits: job_pb2.WorkerStatus) -> int:
    raw = _FLOAT_BYTES if request.include_raw_logprobs else 0
    return _varint_bytes(limits) + _FLOAT_BYTES + raw + _row_bytes(request.topk_sample_logprobs, limits)


def _row_bytes(likeliest: int, limits: job_pb2.WorkerStatus) -> int:
    return likeliest * (_varint_bytes(limits) + _FLOAT_BYTES) + ROW_BYTES if likeliest else 0


def _varint_bytes(limits: job_pb2.WorkerStatus) -> int:
    return max((max(limits.vocab_size - 1, 0).bit_length() + 6) // 7, 1)


def _largest_score(request: sampling_pb2.SampleRequest) -> str:
    sizes = {
        "topk_prompt_logprobs": 2 * request.topk_prompt_logprobs,
        "prompt_alt_tokens_k": 3 * request.prompt_alt_tokens_k,
        "target_prompt_logprobs": _targets(request),
    }
    return max(sizes, key=lambda field: sizes[field])


def _targets(request: sampling_pb2.SampleRequest) -> int:
    return request.target_prompt_logprobs.shape[1] if request.HasField("target_prompt_logprobs") else 0


def _length(request: sampling_pb2.SampleRequest) -> int:
    return chunks.length(request.prompt)
