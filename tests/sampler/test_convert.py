"""Jobs become complete requests with the contract's defaults, results become responses."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from services.core.errors import InvalidArgumentError
from services.gateway.http.sdk.results import sample_output
from services.sampler.convert import to_logprobs_response, to_request, to_sample_response
from services.sampler.request import (
    GenerationRequest,
    GenerationResult,
    SampledTokens,
    SamplingParams,
    StopRule,
    TopkRow,
)
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.tensor import to_array
from tinker_proto.v1 import data_pb2, sampling_pb2

EOS = frozenset({2, 77})
CONTEXT = 50


def prompt(*chunks: list[int]) -> data_pb2.ModelInput:
    return data_pb2.ModelInput(
        chunks=[data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=tokens)) for tokens in chunks]
    )


def sample_job(params: sampling_pb2.SamplingParams | None = None, **fields: object) -> job_pb2.Job:
    request = sampling_pb2.SampleRequest(
        prompt=prompt([4, 5], [6]), sampling_params=params or sampling_pb2.SamplingParams(seed=1), **fields
    )
    return job_pb2.Job(operation="s:1", sample=request)


def converted(job: job_pb2.Job, adapter: Path | None = None) -> GenerationRequest:
    return to_request(job, adapter=adapter, eos_token_ids=EOS, max_context_length=CONTEXT)


def test_absent_fields_get_the_defaults_of_the_contract() -> None:
    assert converted(sample_job()) == GenerationRequest(
        name="s:1",
        prompt=(4, 5, 6),
        num_samples=1,
        params=SamplingParams(max_tokens=CONTEXT - 3, seed=1, temperature=1.0, top_k=-1, top_p=1.0, stop=StopRule(EOS)),
    )


def test_present_fields_are_taken_even_when_zero() -> None:
    params = sampling_pb2.SamplingParams(max_tokens=7, seed=-3, temperature=0.0, top_k=0, top_p=0.5)
    job = sample_job(params, num_samples=4, include_prompt_logprobs=True, topk_prompt_logprobs=3)
    request = converted(job, adapter=Path("/c/1"))
    assert request.params == SamplingParams(7, seed=-3, temperature=0.0, top_k=0, top_p=0.5, stop=StopRule(EOS))
    assert (request.num_samples, request.include_prompt_logprobs, request.topk_prompt_logprobs) == (4, True, 3)
    assert request.adapter == Path("/c/1")


@pytest.mark.parametrize(
    "job",
    [
        job_pb2.Job(tenant="t", sample=sample_job().sample),
        job_pb2.Job(tenant="t", compute_logprobs=sampling_pb2.ComputeLogprobsRequest(prompt=prompt([4]))),
    ],
    ids=["sample", "compute_logprobs"],
)
def test_a_request_is_its_tenants(job: job_pb2.Job) -> None:
    assert converted(job).tenant == "t"


@pytest.mark.parametrize(
    ("stop", "rule"),
    [
        (None, StopRule(EOS)),
        (sampling_pb2.Stop(), StopRule()),
        (sampling_pb2.Stop(token_ids=[9, 8]), StopRule(frozenset({8, 9}))),
        (sampling_pb2.Stop(strings=["\u00e9", "b"]), StopRule(EOS, (b"\xc3\xa9", b"b"))),
    ],
    ids=["absent", "empty", "token ids", "strings"],
)
def test_stop(stop: sampling_pb2.Stop | None, rule: StopRule) -> None:
    assert converted(sample_job(sampling_pb2.SamplingParams(seed=1, stop=stop))).params.stop == rule


def test_compute_logprobs_only_scores() -> None:
    job = job_pb2.Job(operation="s:2", compute_logprobs=sampling_pb2.ComputeLogprobsRequest(prompt=prompt([4] * 50)))
    request = converted(job)
    assert (request.num_samples, request.include_prompt_logprobs, len(request.prompt)) == (0, True, 50)


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (sample_job(sampling_pb2.SamplingParams()), "sampling_params.seed"),
        (
            sample_job(sampling_pb2.SamplingParams(seed=1, stop=sampling_pb2.Stop(strings=["a"], token_ids=[1]))),
            "sampling_params.stop",
        ),
        (
            sample_job(sampling_pb2.SamplingParams(seed=1, stop=sampling_pb2.Stop(strings=["a", ""]))),
            "sampling_params.stop.strings",
        ),
        (
            job_pb2.Job(
                sample=sampling_pb2.SampleRequest(
                    prompt=data_pb2.ModelInput(
                        chunks=[
                            data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=[3])),
                            data_pb2.Chunk(image=data_pb2.ImageChunk(data=b"x", format="png")),
                        ]
                    )
                )
            ),
            "prompt.chunks[1].image",
        ),
        (job_pb2.Job(), "request"),
    ],
    ids=["no seed", "strings and token ids", "empty string", "image", "nothing asked"],
)
def test_what_cannot_be_carried_out_is_refused_by_field(job: job_pb2.Job, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        converted(job)
    assert caught.value.violations[0].field == field


def test_responses_carry_every_value() -> None:
    result = GenerationResult(
        sequences=(SampledTokens((4, 2), (-0.5, -1.5), "stop"), SampledTokens((9,), (-2.0,), "length")),
        prompt_logprobs=(float("nan"), -3.0),
        topk_prompt_logprobs=(TopkRow(), TopkRow([8, 1], [-0.25, -4.0])),
    )
    response = to_sample_response(result)
    assert [list(sequence.tokens) for sequence in response.sequences] == [[4, 2], [9]]
    assert [list(sequence.logprobs) for sequence in response.sequences] == [[-0.5, -1.5], [-2.0]]
    assert [sequence.stop_reason for sequence in response.sequences] == [
        sampling_pb2.StopReason.STOP_REASON_STOP,
        sampling_pb2.StopReason.STOP_REASON_LENGTH,
    ]
    assert math.isnan(response.prompt_logprobs[0])
    assert response.prompt_logprobs[1] == -3.0
    assert [(list(row.token_ids), list(row.logprobs)) for row in response.topk_prompt_logprobs] == [
        ([], []),
        ([8, 1], [-0.25, -4.0]),
    ]
    assert list(to_logprobs_response(result).logprobs)[1:] == [-3.0]
    bare = to_sample_response(GenerationResult(result.sequences))
    assert not bare.prompt_logprobs
    assert not bare.topk_prompt_logprobs


def test_scores_of_sparse_targets_are_sparse_and_what_is_not_listed_asks_for_nothing() -> None:
    rows = {
        "crow_indices": np.array([0, 0, 2, 3], "<i8").tobytes(),
        "col_indices": np.array([0, 2, 1], "<i8").tobytes(),
    }
    targets = data_pb2.Tensor(
        dtype=data_pb2.DATA_TYPE_INT64,
        shape=[3, 3],
        csr=data_pb2.SparseCsr(values=np.array([7, 8, 9], "<i8").tobytes(), **rows),
    )
    request = sampling_pb2.SampleRequest(target_prompt_logprobs=targets, num_samples=1)
    request.prompt.chunks.add().encoded_text.tokens.extend([5, 6, 7])
    request.sampling_params.seed = 1
    read = converted(job_pb2.Job(operation="s:0", sample=request)).target_prompt_tokens
    assert read == ((-1, -1, -1), (7, -1, 8), (-1, 9, -1))
    nan = math.nan
    result = GenerationResult((), target_prompt_logprobs=((nan, nan, nan), (-1.0, nan, -2.0), (nan, -3.0, nan)))
    scores = to_sample_response(result, targets).target_prompt_logprobs
    assert scores.WhichOneof("layout") == "csr"
    assert to_array(scores).tolist() == [[0, 0, 0], [-1, 0, -2], [0, -3, 0]]
    assert sample_output(to_sample_response(result, targets)).target_prompt_logprobs.shape == [2, 3]


def test_conversion_needs_no_torch() -> None:
    program = "import sys, services.sampler.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
