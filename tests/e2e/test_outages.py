"""Processes die with SIGKILL, or stand still, and come back: clients go on, results and checkpoints are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

import tinker_client as tinker
from services.cli.health import is_serving
from services.cli.state_file import running_redis_url
from testing.platform import API_KEY, BASE_MODEL, Platform
from testing.waiting import wait_until
from tests.chaos.comparison import faults_of_operations
from tests.e2e.test_main_job import ADAM, DATA
from tinker_client import types

PROMPT = types.ModelInput.from_ints(tokens=[5, 6, 7])
LEASE_S = 1.0
GREEDY = types.SamplingParams(max_tokens=4, temperature=0.0, stop=[])


@pytest.fixture(scope="module")
def own_platform(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    variables = {"TINKER_LEASE_SECONDS": str(LEASE_S)}
    running = Platform(model_dir, tmp_path_factory.mktemp("outages") / "data", variables)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(own_platform: Platform) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=own_platform.url, api_key=API_KEY) as connected:
        yield connected


def train(run: tinker.TrainingClient, steps: int) -> list[float]:
    pairs = [(run.forward_backward(DATA, "cross_entropy"), run.optim_step(ADAM)) for _ in range(steps)]
    losses = [forward_backward.result(60).metrics["loss:sum"] for forward_backward, _ in pairs]
    for _, optim in pairs:
        optim.result(60)
    return losses


@pytest.mark.parametrize(
    "victim", [("gateway",), ("trainer",), ("sampler",), ("valkey-server",)], ids=lambda words: words[0]
)
def test_a_killed_process_costs_the_client_nothing(
    own_platform: Platform, client: tinker.ServiceClient, victim: tuple[str, ...]
) -> None:
    alone = client.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
    undisturbed = train(alone, 6)
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
    before = train(run, 3)
    saved = run.save_state("kept").result(60).path
    sampling = run.save_weights_and_get_sampling_client("kept")
    answer = sampling.sample(PROMPT, num_samples=1, sampling_params=GREEDY).result(60)

    own_platform.kill(*victim)

    assert before + train(run, 3) == undisturbed, "the run goes on where it was, to the last bit"
    assert sampling.sample(PROMPT, num_samples=1, sampling_params=GREEDY).result(60) == answer
    resumed = client.create_training_client_from_state_with_optimizer(saved)
    assert train(resumed, 3) == undisturbed[3:]


def test_operations_in_flight_survive_a_killed_gateway(own_platform: Platform, client: tinker.ServiceClient) -> None:
    alone = client.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
    undisturbed = train(alone, 20)
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
    pairs = [(run.forward_backward(DATA, "cross_entropy"), run.optim_step(ADAM)) for _ in range(20)]
    own_platform.kill("gateway")
    assert [forward_backward.result(60).metrics["loss:sum"] for forward_backward, _ in pairs] == undisturbed


Numbers = tuple[list[float], list[list[int]]]


def submit(run: tinker.TrainingClient, sampling: tinker.SamplingClient) -> Callable[[], Numbers]:
    """Has much training and sampling under way; returns what waits for its losses and tokens."""
    pairs = [(run.forward_backward(DATA, "cross_entropy"), run.optim_step(ADAM)) for _ in range(40)]
    params = [types.SamplingParams(max_tokens=60, seed=seed, stop=[]) for seed in range(20)]
    samples = [sampling.sample(PROMPT, 2, one) for one in params]
    pairs[1][0].result(60)

    def numbers() -> Numbers:
        losses = [forward_backward.result(60).metrics["loss:sum"] for forward_backward, _ in pairs]
        return losses, [sequence.tokens for sample in samples for sequence in sample.result(60).sequences]

    assert not pairs[-1][1].done()
    return numbers


def health(platform: Platform) -> int:
    """What the gateway says of itself on both ports."""
    assert asyncio.run(is_serving(platform.address)), "what needs no queue is answered"
    return httpx.get(f"http://127.0.0.1:{platform.http_port}/healthz", timeout=60).status_code


@pytest.fixture(scope="module")
def undisturbed(own_platform: Platform) -> Numbers:
    with tinker.ServiceClient(base_url=own_platform.url, api_key=API_KEY) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
        return submit(run, run.save_weights_and_get_sampling_client("calm"))()


def test_a_queue_that_stands_still_for_longer_than_a_lease_costs_nothing(
    own_platform: Platform, client: tinker.ServiceClient, undisturbed: Numbers
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
    sampling = run.save_weights_and_get_sampling_client("paused")
    valkey = own_platform.child("valkey-server")
    numbers = submit(run, sampling)
    valkey.suspend()
    try:
        since = time.monotonic()
        while time.monotonic() - since < 2 * LEASE_S:
            assert health(own_platform) == httpx.codes.SERVICE_UNAVAILABLE
    finally:
        valkey.resume()
    assert numbers() == undisturbed
    wait_until(lambda: health(own_platform) == httpx.codes.OK, what="health")
    assert faults_of_operations(running_redis_url(own_platform.data_dir)) == []


def test_a_queue_that_is_slow_for_a_while_costs_time_and_nothing_else(
    own_platform: Platform, client: tinker.ServiceClient, undisturbed: Numbers
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
    sampling = run.save_weights_and_get_sampling_client("slow")
    numbers = submit(run, sampling)
    redis_url = running_redis_url(own_platform.data_dir)
    with redis.Redis.from_url(redis_url) as commands:
        for _ in range(6):  # each waits for the end of the one before
            commands.client_pause(400, all=True)
            assert health(own_platform) in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE)
    assert numbers() == undisturbed
    wait_until(lambda: health(own_platform) == httpx.codes.OK, what="health")
    assert faults_of_operations(redis_url) == []


def test_everything_is_there_after_a_restart_of_the_platform(model_dir: Path, tmp_path: Path) -> None:
    platform = Platform(model_dir, tmp_path / "data")
    platform.start()
    with tinker.ServiceClient(base_url=platform.url, api_key=API_KEY) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        first = train(run, 3)
        path = run.save_state("kept").result(60).path
    assert platform.stop() == 0
    platform.start()
    with tinker.ServiceClient(base_url=platform.url, api_key=API_KEY) as client:
        rest = client.create_rest_client()
        assert [checkpoint.tinker_path for checkpoint in rest.list_user_checkpoints().result().checkpoints] == [path]
        resumed = client.create_training_client_from_state_with_optimizer(path)
        assert train(resumed, 1)[0] < first[-1]
    assert platform.stop() == 0
