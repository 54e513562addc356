"""Processes die with SIGKILL and come back: clients go on, results and checkpoints are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tinker_client as tinker
from tests.e2e.platform import API_KEY, BASE_MODEL, Platform
from tests.e2e.test_main_job import ADAM, DATA
from tinker_client import types

PROMPT = types.ModelInput.from_ints(tokens=[5, 6, 7])
GREEDY = types.SamplingParams(max_tokens=4, temperature=0.0, stop=[])


@pytest.fixture(scope="module")
def own_platform(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(model_dir, tmp_path_factory.mktemp("outages") / "data")
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
    calm = client.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
    undisturbed = train(calm, 6)
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
    calm = client.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
    undisturbed = train(calm, 20)
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
    pairs = [(run.forward_backward(DATA, "cross_entropy"), run.optim_step(ADAM)) for _ in range(20)]
    own_platform.kill("gateway")
    assert [forward_backward.result(60).metrics["loss:sum"] for forward_backward, _ in pairs] == undisturbed


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
