"""Streams and cancellation through the whole platform: tokens as they come, one result, and slots free at once."""

from __future__ import annotations

import asyncio
import gc

import grpc
import psutil
import pytest

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from testing.waiting import wait_until
from tests.gateway.caller import open_caller, tokens
from tests.http.counting_proxy import CountingProxy
from tinker_client import types
from tinker_proto.v1 import sampling_pb2, session_pb2

PROMPT = types.ModelInput.from_ints(tokens=[5, 6, 7])
PARAMS = types.SamplingParams(max_tokens=40, seed=3, stop=[])
ENDLESS = types.SamplingParams(max_tokens=120, seed=3, stop=[])


@pytest.fixture
def sampling(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=BASE_MODEL)


def joined(streamed: list[types.SampledToken], index: int) -> tuple[list[int], list[float]]:
    mine = [item for item in streamed if item.sequence_index == index]
    return [item.token for item in mine], [item.logprob for item in mine]


def test_streamed_tokens_are_those_of_the_result(sampling: tinker.SamplingClient) -> None:
    whole = sampling.sample(PROMPT, 3, PARAMS).result(60)
    stream = sampling.sample_stream(PROMPT, 3, PARAMS)
    streamed = list(stream)
    result = stream.result()
    assert [sequence.tokens for sequence in result.sequences] == [sequence.tokens for sequence in whole.sequences]
    for index, sequence in enumerate(result.sequences):
        assert joined(streamed, index) == (sequence.tokens, sequence.logprobs)
    ends = [item for item in streamed if item.stop_reason is not None]
    assert sorted(item.sequence_index for item in ends) == [0, 1, 2]


async def test_tokens_come_before_the_end(sampling: tinker.SamplingClient) -> None:
    with sampling.sample_stream(PROMPT, 1000, ENDLESS) as early:
        await anext(early)
    with pytest.raises(tinker.RequestFailedError, match="cancelled"):  # the first token was there and the result not
        await early.result_async()
    stream = sampling.sample_stream(PROMPT, 1, ENDLESS, topk_sample_logprobs=2)
    first = await anext(stream)
    rest = [item async for item in stream]
    result = await stream.result_async()
    assert [first.token, *(item.token for item in rest)] == result.sequences[0].tokens
    topk = result.sequences[0].topk_logprobs
    assert topk is not None
    assert [len(row) for row in topk] == [2] * 120


def test_a_refused_stream_fails_by_field(sampling: tinker.SamplingClient) -> None:
    stream = sampling.sample_stream(PROMPT, 1, types.SamplingParams(max_tokens=4, top_p=0.0))
    with pytest.raises(tinker.BadRequestError, match="top_p"):
        next(stream)
    with pytest.raises(tinker.BadRequestError, match="top_p"):
        stream.result()


def fill(sampling: tinker.SamplingClient) -> tinker.APIFuture[types.SampleResponse]:
    """Takes every slot of the sampler for a while."""
    return sampling.sample(PROMPT, 1024, ENDLESS)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_cancelling_a_future_frees_its_slots(platform: Platform, sampling: tinker.SamplingClient) -> None:
    sampler = platform.child("sampler")
    before = cpu_seconds(sampler)
    sampling.sample(PROMPT, 128, ENDLESS).result(60)
    eighth = cpu_seconds(sampler) - before
    big = fill(sampling)
    quick = types.SamplingParams(max_tokens=1, seed=1)
    sampling.sample(PROMPT, 1, quick)
    assert big.cancel()
    with pytest.raises(tinker.RequestFailedError, match="cancelled"):
        big.result(30)
    before = cpu_seconds(sampler)
    sampling.sample(PROMPT, 1, quick).result(60)
    assert cpu_seconds(sampler) - before < eighth, "the sampler has not worked on"


def test_cancelling_a_stream_ends_it(sampling: tinker.SamplingClient) -> None:
    with sampling.sample_stream(PROMPT, 1000, ENDLESS) as stream:
        next(stream)
    with pytest.raises(tinker.RequestFailedError, match="cancelled"):
        stream.result()


def test_a_stream_that_is_not_read_to_its_end_stays_nowhere(sampling: tinker.SamplingClient) -> None:
    def calls() -> list[object]:
        gc.collect()
        return [item for item in gc.get_objects() if issubclass(type(item), grpc.aio.UnaryStreamCall)]

    others = calls()  # kept, so that a new one is none of them

    def has_open_calls() -> bool:
        return any(all(call is not other for other in others) for call in calls())

    for _ in range(3):
        with sampling.sample_stream(PROMPT, 1, ENDLESS) as stream:
            next(stream)
    assert has_open_calls()
    del stream
    wait_until(lambda: not has_open_calls(), what="the end of three broken streams")


async def test_a_stream_goes_on_after_a_cut_connection(platform: Platform) -> None:
    async with CountingProxy(int(platform.address.rpartition(":")[2])).serve() as proxy:
        service = tinker.ServiceClient(base_url=f"grpc://127.0.0.1:{proxy.port}", api_key=API_KEY)
        sampling = await service.create_sampling_client_async(base_model=BASE_MODEL)
        stream = sampling.sample_stream(PROMPT, 300, ENDLESS)
        streamed = [await anext(stream)]
        proxy.cut()
        streamed += [item async for item in stream]
        result = await stream.result_async()
        for index, sequence in enumerate(result.sequences):
            assert joined(streamed, index) == (sequence.tokens, sequence.logprobs)
        await asyncio.to_thread(service.close)


async def test_a_caller_that_comes_back_gets_what_it_has_not_received(platform: Platform) -> None:
    async with open_caller(platform.address, API_KEY) as caller:
        session = (await caller.sessions.CreateSession(session_pb2.CreateSessionRequest())).session_id
        opened = await caller.sampling.CreateSamplingSession(
            sampling_pb2.CreateSamplingSessionRequest(session_id=session, base_model=BASE_MODEL)
        )
        samples = 100
        generation = sampling_pb2.SampleRequest(
            sampling_session_id=opened.sampling_session_id,
            seq_id=0,
            prompt=tokens(5, 6, 7),
            num_samples=samples,
            sampling_params=sampling_pb2.SamplingParams(max_tokens=120, seed=1, stop=sampling_pb2.Stop()),
        )
        streamed: list[list[int]] = [[] for _ in range(samples)]

        def add(message: sampling_pb2.SampleStreamResponse) -> None:
            for piece in message.pieces:
                assert piece.start == len(streamed[piece.sequence_index]), "no gap and no repeat"
                streamed[piece.sequence_index] += piece.tokens

        call = caller.sampling.SampleStream(sampling_pb2.SampleStreamRequest(request=generation))
        async for message in call:
            add(message)
            if message.pieces:
                break
        call.cancel()
        assert not all(len(sequence) == 120 for sequence in streamed)
        again = sampling_pb2.SampleStreamRequest(request=generation, received=map(len, streamed))
        rest = [message async for message in caller.sampling.SampleStream(again)]
        for message in rest:
            add(message)
        response = sampling_pb2.SampleResponse()
        assert rest[-1].operation.response.Unpack(response)
        for sequence, whole in zip(streamed, response.sequences, strict=True):
            assert sequence == list(whole.tokens)[: len(sequence)]
        assert sum(map(len, streamed)) > samples * 60, "they came as they were generated"


def test_every_extra_comes_back_to_the_client(sampling: tinker.SamplingClient) -> None:
    tokens = list(range(5, 45))
    prompt = types.ModelInput.from_ints(tokens)
    params = types.SamplingParams(max_tokens=5, seed=2, stop=[], temperature=0.5)
    whole = sampling.compute_logprobs(prompt).result(60)
    answer = sampling.sample(
        prompt,
        2,
        params,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
        target_prompt_logprobs=[[token, 7] for token in tokens],
        prompt_logprobs_last_n=4,
        include_raw_logprobs=True,
    ).result(60)
    assert answer.prompt_logprobs is not None
    assert answer.topk_prompt_logprobs is not None
    assert answer.target_prompt_logprobs is not None
    assert answer.prompt_logprobs[:36] == [None] * 36
    assert answer.prompt_logprobs[36:] == pytest.approx(whole[36:], abs=1e-5)
    assert answer.topk_prompt_logprobs[:36] == [None] * 36
    assert [len(row or []) for row in answer.topk_prompt_logprobs[36:]] == [3] * 4
    targets = answer.target_prompt_logprobs.to_numpy()
    assert targets.shape == (40, 2)
    assert targets[36:, 0] == pytest.approx(answer.prompt_logprobs[36:], abs=1e-6)
    assert answer.prompt_cache_hit_tokens == 32, "compute_logprobs has left the prompt in the cache"
    for sequence in answer.sequences:
        assert sequence.raw_logprobs is not None
        assert sequence.topk_logprobs is not None
        scored = sampling.compute_logprobs(types.ModelInput.from_ints(tokens + sequence.tokens), 5).result(60)
        assert scored[40:] == pytest.approx(sequence.raw_logprobs, abs=1e-5)
        assert [len(row) for row in sequence.topk_logprobs] == [2] * 5
