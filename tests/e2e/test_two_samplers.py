"""A sampler or a gateway is killed with SIGKILL in the middle of its work, and nobody notices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from testing.waiting import wait_until
from tinker_client import types

PROMPT = types.ModelInput.from_ints(tokens=[5, 6, 7])


@pytest.fixture(scope="module")
def crowded(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform of its own, so that its samplers are known."""
    running = Platform(model_dir, tmp_path_factory.mktemp("two-samplers") / "data")
    running.start()
    yield running
    running.stop()


def start_another(platform: Platform, model_dir: Path) -> subprocess.Popen[bytes]:
    """A second sampler with the settings of the first."""
    settings = platform.child("sampler").environ()
    command = [sys.executable, "-m", "services.cli.main", "sampler", "--base-model", f"{BASE_MODEL}={model_dir}"]
    with open(platform.data_dir.parent / "second-sampler.log", "wb") as log:
        started = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    log_file = platform.data_dir.parent / "second-sampler.log"
    wait_until(lambda: b"serving" in log_file.read_bytes(), what="a second sampler")
    return started


def test_requests_of_a_killed_sampler_run_again_with_the_same_tokens(crowded: Platform, model_dir: Path) -> None:
    with tinker.ServiceClient(base_url=crowded.url, api_key=API_KEY) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        sampling = run.save_weights_and_get_sampling_client("kept")
        params = [types.SamplingParams(max_tokens=100, seed=seed, stop=[]) for seed in range(24)]
        expected = [sampling.sample(PROMPT, 4, one).result(60) for one in params]
        second = start_another(crowded, model_dir)
        try:
            busy = psutil.Process(second.pid)
            before = busy.cpu_times().user
            futures = [sampling.sample(PROMPT, 4, one) for one in params for _ in range(4)]
            wait_until(lambda: busy.cpu_times().user - before > 0.3, what="work at the second sampler")
            assert not all(future.done() for future in futures)
            busy.kill()
        finally:
            second.kill()
            second.wait()
        for index, future in enumerate(futures):
            answer = future.result(120)
            tokens = [sequence.tokens for sequence in answer.sequences]
            assert tokens == [sequence.tokens for sequence in expected[index // 4].sequences]


def test_a_stream_goes_on_after_its_gateway_was_killed(crowded: Platform) -> None:
    with tinker.ServiceClient(base_url=crowded.url, api_key=API_KEY) as client:
        sampling = client.create_sampling_client(base_model=BASE_MODEL)
        params = types.SamplingParams(max_tokens=120, seed=5, stop=[])
        expected = sampling.sample(PROMPT, 300, params).result(60)
        stream = sampling.sample_stream(PROMPT, 300, params)
        streamed = [next(stream)]
        crowded.kill("gateway")
        streamed += stream
        assert stream.result() == expected
        for index, sequence in enumerate(expected.sequences):
            tokens = [item.token for item in streamed if item.sequence_index == index]
            assert tokens == sequence.tokens, "every token once and in order"
