"""Load on the sampler from one client, and what a bad request or a later checkpoint may not change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import tinker_client as tinker
from testing.platform import BASE_MODEL, Platform
from tests.e2e.test_main_job import ADAM, DATA
from tinker_client import types

PROMPT = types.ModelInput.from_ints(tokens=[5, 6, 7])


async def answers_per_check(platform: Platform, answers: Sequence[tinker.APIFuture[Any]]) -> list[int]:
    """How many answers came in while each health check waited for its own, until all were there."""

    def count() -> int:
        return sum(answer.done() for answer in answers)

    passed = []
    async with grpc.aio.insecure_channel(platform.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while (before := count()) < len(answers):
            reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            passed.append(count() - before)
            await asyncio.sleep(0.05)
    return passed


async def test_2000_concurrent_requests_of_one_client(platform: Platform, service: tinker.ServiceClient) -> None:
    count = 2000
    sampling = await service.create_sampling_client_async(base_model=BASE_MODEL)
    sampler, gateway = platform.child("sampler"), platform.child("gateway")
    warm = [sampling.sample(PROMPT, 1, types.SamplingParams(max_tokens=4, seed=seed)) for seed in range(64)]
    await asyncio.gather(*warm)
    before = sampler.memory_info().rss + gateway.memory_info().rss
    params = [types.SamplingParams(max_tokens=4, seed=seed, stop=[]) for seed in range(count)]
    futures = [sampling.sample(PROMPT, 1, one) for one in params]
    passed = await answers_per_check(platform, futures)
    answers = [future.result() for future in futures]
    grown = sampler.memory_info().rss + gateway.memory_info().rss - before
    assert [len(answer.sequences[0].tokens) for answer in answers] == [4] * count
    assert max(passed) < count / 4, "the gateway's health check answers throughout"
    assert grown < 100 << 20, f"memory grew by {grown >> 20} MiB"
    again = await sampling.sample(PROMPT, 1, params[count // 2])
    assert again.sequences[0].tokens == answers[count // 2].sequences[0].tokens


def test_bad_requests_fail_alone_and_by_name(service: tinker.ServiceClient) -> None:
    sampling = service.create_sampling_client(base_model=BASE_MODEL)
    good = types.SamplingParams(max_tokens=8, seed=1)
    bad = {
        "vocabulary": (types.ModelInput.from_ints([5, 1_000_000]), good, "prompt.chunks"),
        "context": (PROMPT, types.SamplingParams(max_tokens=1_000_000), "max_tokens"),
        "top_p": (PROMPT, types.SamplingParams(max_tokens=1, top_p=0.0), "top_p"),
        "temperature": (PROMPT, types.SamplingParams(max_tokens=1, temperature=-1.0), "temperature"),
        "stops": (PROMPT, types.SamplingParams(max_tokens=1, stop=["x"] * 10_000), "stop.strings"),
        "unreadable": (PROMPT, types.SamplingParams(max_tokens=1, stop="x"), "stop.strings"),
    }
    futures = []
    wrong = {}
    for index in range(32):
        futures.append(sampling.sample(PROMPT, 1, good))
        if index % 5 == 0 and len(wrong) < len(bad):
            name = list(bad)[len(wrong)]
            prompt, params, _ = bad[name]
            wrong[name] = sampling.sample(prompt, 1, params)
    for name, future in wrong.items():
        error = future.exception(60)
        assert isinstance(error, tinker.TinkerError), name
        assert bad[name][2] in str(error), name
    answers = [future.result(60).sequences[0].tokens for future in futures]
    assert all(answer == answers[0] for answer in answers)


def test_a_sampling_client_is_frozen(service: tinker.ServiceClient) -> None:
    """Training on, saving again, overwriting and deleting what it samples from change none of its answers."""
    run = service.create_lora_training_client(BASE_MODEL, rank=4, seed=3)

    def train() -> None:
        run.forward_backward(DATA, "cross_entropy").result(60)
        run.optim_step(ADAM).result(60)

    def answers(client: tinker.SamplingClient) -> tuple[types.SampleResponse, list[float | None]]:
        params = types.SamplingParams(max_tokens=20, seed=9, stop=[])
        return client.sample(PROMPT, 2, params).result(60), client.compute_logprobs(PROMPT).result(60)

    train()
    frozen = run.save_weights_and_get_sampling_client("frozen")
    state = run.save_state("state").result(60).path
    replaced = service.create_sampling_client(model_path=state)
    first = answers(frozen), answers(replaced)
    for step in range(3):
        train()
        run.save_weights_for_sampler(f"newer-{step}").result(60)
    assert run.save_state("state", overwrite=True).result(60).path == state
    newest = service.create_sampling_client(model_path=state)
    assert newest.compute_logprobs(PROMPT).result(60) != first[0][1], "training changes something"
    rest = service.create_rest_client()
    for path in (state, f"tinker://{run.model_id}/sampler_weights/frozen"):
        rest.delete_checkpoint_from_tinker_path(path).result(60)
    assert (answers(frozen), answers(replaced)) == first
