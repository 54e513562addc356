"""What Prometheus reads from a gateway and from workers, after real work."""

from __future__ import annotations

import re

import httpx

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from tinker_client import types


def values(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    return {name: float(value) for name, value in re.findall(r"^(tinker_\S+) (\S+)$", text, re.M)}


def test_a_gateway_shows_calls_errors_workers_and_the_queue(sdk_platform: Platform) -> None:
    with tinker.ServiceClient(base_url=sdk_platform.url, api_key=API_KEY) as service:
        sampling = service.create_sampling_client(base_model=BASE_MODEL)
        sampling.sample(types.ModelInput.from_ints([5, 6, 7]), 1, types.SamplingParams(max_tokens=4)).result(60)
        url = f"http://127.0.0.1:{sdk_platform.http_port}"
        before = values(httpx.get(f"{url}/metrics").text)
        sampling.sample(types.ModelInput.from_ints([5, 6, 7]), 1, types.SamplingParams(max_tokens=4)).result(60)
        assert httpx.get(f"{url}/nothing").status_code == 404
        after = values(httpx.get(f"{url}/metrics").text)
    sample = 'tinker_calls_total{method="/tinker.v1.SamplingService/Sample",reason=""}'
    assert after[sample] == before[sample] + 1
    assert after['tinker_http_requests_total{status="404"}'] >= 1
    for kind in ("trainer", "sampler"):
        assert after[f'tinker_workers{{base_model="{BASE_MODEL}",kind="{kind}"}}'] == 1
        assert after[f'tinker_slots{{base_model="{BASE_MODEL}",kind="{kind}"}}'] == 64
    assert after[f'tinker_samples_waiting{{base_model="{BASE_MODEL}"}}'] == 0
    assert after[f'tinker_next_sample_seconds{{base_model="{BASE_MODEL}"}}'] == 0
    assert (after['tinker_requests_waiting{kind="sampling"}'], after["tinker_request_bytes_waiting"]) == (0, 0)
    assert after["tinker_sessions_open"] >= 1


def test_workers_show_their_own(sdk_platform: Platform) -> None:
    with tinker.ServiceClient(base_url=sdk_platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=2)
        datum = types.Datum(types.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8]})
        training.forward_backward([datum], "cross_entropy").result(60)
        sampling = training.save_weights_and_get_sampling_client("shown")
        sampling.sample(types.ModelInput.from_ints([5, 6, 7]), 2, types.SamplingParams(max_tokens=4, stop=[])).result(
            60
        )
    port = int(sdk_platform.variables["TINKER_METRICS_PORT"])
    trainer, sampler = (values(httpx.get(f"http://127.0.0.1:{port + i}/metrics").text) for i in range(2))
    assert trainer["tinker_trained_tokens_total"] >= 3
    assert trainer['tinker_operations_total{method="forward_backward",reason=""}'] >= 1
    assert trainer['tinker_pass_seconds_count{method="forward_backward"}'] >= 1
    assert sampler["tinker_generated_tokens_total"] >= 8
    assert sampler["tinker_prompt_tokens_total"] >= 3
    assert sampler["tinker_step_seconds_count"] >= 4
