"""A request that needs what a base model's samplers cannot do is refused by name, before it is queued."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.core.abilities import ABILITIES, Ability, announced, announcement
from services.gateway.stores import Stores
from services.gateway.validation.abilities import NEEDED_AT
from tests.gateway.caller import BASE, Caller, fields_at_fault, tokens
from tests.gateway.saved import save
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.tensor import from_array
from tinker_proto.v1 import operation_pb2, sampling_pb2

Request = sampling_pb2.SampleRequest | sampling_pb2.ComputeLogprobsRequest | sampling_pb2.MergeWeightsRequest
Make = Callable[..., Request]


def sample(*, sampling_params: dict[str, Any] | None = None, **fields: Any) -> Make:
    params = {"max_tokens": 4, **(sampling_params or {})}
    return lambda **scope: sampling_pb2.SampleRequest(prompt=tokens(1, 2, 3), sampling_params=params, **fields, **scope)


def scoring(**scope: Any) -> Request:
    return sampling_pb2.ComputeLogprobsRequest(prompt=tokens(1, 2, 3), **scope)


def merge(**scope: Any) -> Request:
    return sampling_pb2.MergeWeightsRequest(**scope)


TARGETS = from_array(np.array([[1], [2], [3]], dtype=np.int64))
BASE_MODEL, CHECKPOINT = "a session of the base model", "a session of a checkpoint"
NEEDS: list[tuple[Ability, str, Make, str]] = [
    (Ability.ADAPTERS, CHECKPOINT, sample(), "sampling_session_id"),
    (Ability.ADAPTERS, CHECKPOINT, scoring, "sampling_session_id"),
    (Ability.MERGE_WEIGHTS, CHECKPOINT, merge, "sampling_session_id"),
    (Ability.PROMPT_LOGPROBS, BASE_MODEL, scoring, "prompt"),
    (Ability.PROMPT_LOGPROBS, BASE_MODEL, sample(include_prompt_logprobs=True), "include_prompt_logprobs"),
    (Ability.TOPK_PROMPT_LOGPROBS, BASE_MODEL, sample(topk_prompt_logprobs=1), "topk_prompt_logprobs"),
    (Ability.TARGET_PROMPT_LOGPROBS, BASE_MODEL, sample(target_prompt_logprobs=TARGETS), "target_prompt_logprobs"),
    (Ability.PROMPT_ALT_TOKENS, BASE_MODEL, sample(prompt_alt_tokens_k=2), "prompt_alt_tokens_k"),
    (Ability.RAW_LOGPROBS, BASE_MODEL, sample(include_raw_logprobs=True), "include_raw_logprobs"),
    (Ability.RAW_LOGPROBS, BASE_MODEL, sample(topk_sample_logprobs=1), "topk_sample_logprobs"),
    (
        Ability.UNFILTERED_LOGPROBS,
        BASE_MODEL,
        sample(sampling_params={"temperature": 0.7, "top_k": 5}),
        "sampling_params.top_k",
    ),
    (
        Ability.UNFILTERED_LOGPROBS,
        BASE_MODEL,
        sample(sampling_params={"temperature": 0.7, "top_p": 0.9}),
        "sampling_params.top_p",
    ),
    (Ability.SEEDS, BASE_MODEL, sample(sampling_params={"seed": 0}), "sampling_params.seed"),
    (
        Ability.STOP_STRINGS,
        BASE_MODEL,
        sample(sampling_params={"stop": {"strings": ["x"]}}),
        "sampling_params.stop.strings",
    ),
]
NEEDS_NOTHING = {
    "plain": sample(),
    "temperature alone": sample(sampling_params={"temperature": 0.7, "top_k": -1, "top_p": 1.0}),
    "filters at temperature 1": sample(sampling_params={"temperature": 1.0, "top_k": 5}),
    "filters without a temperature": sample(sampling_params={"top_p": 0.5}),
    "filters at temperature 0": sample(sampling_params={"temperature": 0.0, "top_p": 0.5}),
    "stop tokens": sample(sampling_params={"stop": {"token_ids": [5]}}),
    "no stop": sample(sampling_params={"stop": {}}),
    "many": sample(num_samples=8),
}


@pytest.fixture
async def announce(stores: Stores, workers: list[job_pb2.WorkerStatus]) -> Any:
    """Announces the sampler with these abilities."""
    sampler = workers[1]

    async def announced_with(abilities: Iterable[Ability]) -> None:
        sampler.abilities.CopyFrom(announcement(abilities))
        await stores.workers.announce(sampler)

    return announced_with


async def session(alice: Caller, stores: Stores, kind: str) -> str:
    if kind == BASE_MODEL:
        return await alice.sampling_session()
    run = await alice.run()
    path = await save(alice, stores, run, "a", kind="sampler_weights")
    request = sampling_pb2.CreateSamplingSessionRequest(session_id=run.split(":")[0], model_path=path)
    return str((await alice.sampling.CreateSamplingSession(request)).sampling_session_id)


async def call(alice: Caller, request: Request) -> operation_pb2.Operation:
    method = type(request).__name__.removesuffix("Request")
    return await getattr(alice.sampling, method)(request)


def reason(error: grpc.aio.AioRpcError) -> str:
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    status.ParseFromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    return next(info.reason for detail in status.details if detail.Unpack(info))


@pytest.mark.parametrize(
    ("ability", "kind", "make", "field"), NEEDS, ids=[f"{ability.value} at {field}" for ability, _, _, field in NEEDS]
)
async def test_a_request_is_refused_for_lack_of_its_ability_and_no_other(
    alice: Caller, stores: Stores, announce: Any, ability: Ability, kind: str, make: Make, field: str
) -> None:
    sampling = await session(alice, stores, kind)
    await announce(set(Ability) - {ability})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(alice, make(sampling_session_id=sampling, seq_id=0))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(refused.value) == [field]
    assert reason(refused.value) == "MISSING_ABILITY"
    assert ABILITIES[ability] in str(refused.value.details())
    assert repr(BASE) in str(refused.value.details())
    assert await stores.operations.states([f"{sampling}:0"], "alice") == {}, "nothing is queued"
    await announce({ability, Ability.PROMPT_LOGPROBS} if make is scoring else {ability})
    accepted = await call(alice, make(sampling_session_id=sampling, seq_id=0))
    assert accepted.state == operation_pb2.OPERATION_STATE_QUEUED


@pytest.mark.parametrize("make", NEEDS_NOTHING.values(), ids=NEEDS_NOTHING)
async def test_an_engine_without_abilities_gets_what_needs_none(
    alice: Caller, stores: Stores, announce: Any, make: Make
) -> None:
    await announce(())
    accepted = await call(alice, make(sampling_session_id=await alice.sampling_session(), seq_id=0))
    assert accepted.state == operation_pb2.OPERATION_STATE_QUEUED


async def test_a_stream_is_refused_as_the_sample_is(alice: Caller, announce: Any) -> None:
    await announce(())
    request = sample(topk_prompt_logprobs=1)(sampling_session_id=await alice.sampling_session(), seq_id=0)
    stream = alice.sampling.SampleStream(sampling_pb2.SampleStreamRequest(request=request))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.read()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(refused.value) == "MISSING_ABILITY"


async def test_an_invalid_value_is_refused_as_such_whatever_the_abilities(alice: Caller, announce: Any) -> None:
    await announce(())
    request = sample(topk_prompt_logprobs=101)(sampling_session_id=await alice.sampling_session(), seq_id=0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(alice, request)
    assert fields_at_fault(refused.value) == ["topk_prompt_logprobs"]
    assert reason(refused.value) == "INVALID_ARGUMENT"


async def test_a_sampler_that_announces_no_abilities_field_has_all(alice: Caller) -> None:
    request = sample(topk_prompt_logprobs=1, sampling_params={"seed": 1})
    accepted = await call(alice, request(sampling_session_id=await alice.sampling_session(), seq_id=0))
    assert accepted.state == operation_pb2.OPERATION_STATE_QUEUED


def test_announcements_are_read_as_written_without_unknown_numbers() -> None:
    for abilities in (frozenset[Ability](), frozenset({Ability.SEEDS}), frozenset(Ability)):
        assert announced(job_pb2.WorkerStatus(abilities=announcement(abilities))) == abilities
    newer = job_pb2.AnnouncedAbilities(abilities=[job_pb2.ABILITY_SEEDS, 1000])
    assert announced(job_pb2.WorkerStatus(abilities=newer)) == {Ability.SEEDS}
    assert announced(job_pb2.WorkerStatus()) == frozenset(Ability)


def test_words_checks_the_contract_and_these_tests_know_the_same_abilities() -> None:
    everything = set(Ability)
    assert set(ABILITIES) == set(NEEDED_AT) == {ability for ability, *_ in NEEDS} == everything
    assert {f"ABILITY_{ability.name}" for ability in everything} == set(job_pb2.Ability.keys()) - {
        "ABILITY_UNSPECIFIED"
    }
