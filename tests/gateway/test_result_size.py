"""The bound of a sampling request's result, against results of that size as they are serialized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.core.errors import InvalidArgumentError
from services.gateway.validation.result_size import check_result_size, prompt_bytes, sample_bytes
from services.sampler.convert import to_sample_response
from services.sampler.request import GenerationResult, SampledTokens, TopkRow
from tests.gateway.caller import tokens
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.tensor import from_array
from tinker_proto.v1 import sampling_pb2

LIMITS = job_pb2.WorkerStatus(max_context_length=4096, vocab_size=150_000)
LARGEST = LIMITS.vocab_size - 1
MIB = 1 << 20


def request(prompt: int, samples: int, max_tokens: int | None, targets: int = 0, **fields: Any) -> Any:
    made = sampling_pb2.SampleRequest(prompt=tokens(*[1] * prompt), num_samples=samples, **fields)
    if max_tokens is not None:
        made.sampling_params.max_tokens = max_tokens
    if targets:
        made.target_prompt_logprobs.CopyFrom(from_array(np.zeros((prompt, targets), np.int64)))
    return made


def largest_result(asked: Any, targets: int) -> int:
    """Bytes of the result that has as many and as large numbers as the request allows."""
    prompt, count = len(asked.prompt.chunks[0].encoded_text.tokens), asked.sampling_params.max_tokens
    counts = (asked.topk_prompt_logprobs, asked.topk_sample_logprobs)
    prompt_row, row = (TopkRow([LARGEST] * k, [-1.0] * k) for k in counts)
    sampled = SampledTokens(
        (LARGEST,) * count,
        (-1.0,) * count,
        "length",
        (row,) * count if asked.topk_sample_logprobs else None,
        (-1.0,) * count if asked.include_raw_logprobs else None,
    )
    result = GenerationResult(
        (sampled,) * asked.num_samples,
        (-1.0,) * prompt if asked.include_prompt_logprobs else None,
        (prompt_row,) * prompt if asked.topk_prompt_logprobs else None,
        ((-1.0,) * targets,) * prompt if targets else None,
    )
    return to_sample_response(result).ByteSize()


@pytest.mark.parametrize("prompt", [1, 700])
@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("max_tokens", [1, 500])
@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("topk", [0, 1, 20])
@pytest.mark.parametrize("scored", [False, True])
def test_the_bound_holds_and_is_near(
    prompt: int, samples: int, max_tokens: int, targets: int, topk: int, scored: bool
) -> None:
    fields = {"topk_prompt_logprobs": topk, "topk_sample_logprobs": topk, "include_raw_logprobs": scored}
    asked = request(prompt, samples, max_tokens, targets, include_prompt_logprobs=scored, **fields)
    size = largest_result(asked, targets)
    bound = prompt_bytes(asked, LIMITS) + samples * sample_bytes(asked, LIMITS)
    assert size <= bound <= 1.5 * size + 64 * (samples + 1)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(3, 320, 505, topk_sample_logprobs=100), "num_samples"),
        (request(3, 1024, None), "num_samples"),
        (request(3, 1, None, topk_sample_logprobs=100), "sampling_params.max_tokens"),
        (request(2000, 1, 1, topk_prompt_logprobs=100), "topk_prompt_logprobs"),
        (request(300, 1, 1, targets=1024), "target_prompt_logprobs"),
    ],
)
def test_a_request_is_refused_by_the_field_that_makes_it_too_large(asked: Any, field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"max_result_bytes") as refused:
        check_result_size(asked, LIMITS, MIB)
    assert [violation.field for violation in refused.value.violations] == [field]
    assert refused.value.reason == "RESULT_TOO_LARGE"


def test_what_the_refusal_names_is_accepted() -> None:
    asked = request(3, 320, 505, topk_sample_logprobs=100)
    with pytest.raises(InvalidArgumentError) as refused:
        check_result_size(asked, LIMITS, MIB)
    most = int(refused.value.message.split("at most ")[1].split(",")[0])
    asked.num_samples = most
    check_result_size(asked, LIMITS, MIB)
    asked.num_samples = most + 1
    with pytest.raises(InvalidArgumentError):
        check_result_size(asked, LIMITS, MIB)
