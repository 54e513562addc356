"""What a user with grpcurl sees, and what the light processes leave out. `buf curl` is grpcurl's twin."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from testing.platform import API_KEY, BASE_MODEL, Platform

BUF = str(Path(sys.executable).parent / "buf")


def curl(platform: Platform, *arguments: str, body: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Calls the platform with nothing but reflection to go by."""
    data = ["--data", json.dumps(body)] if body is not None else []
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *data, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def call(platform: Platform, method: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"http://{platform.address}/tinker.v1.{method}"
    done = curl(platform, "-H", f"x-api-key: {API_KEY}", url, body=body)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def finished(platform: Platform, name: str) -> dict[str, Any]:
    """The operation once it is done; a watch that names it returns it at once or when it ends."""
    session = name.partition(":")[0]
    url = f"http://{platform.address}/tinker.v1.OperationService/WatchOperations"
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", f"x-api-key: {API_KEY}"]
    body = json.dumps({"session_id": session, "pending": [name]})
    with subprocess.Popen([*command, "--data", body, url], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        decoder, text = json.JSONDecoder(), ""
        try:
            for line in watch.stdout:
                text += line
                try:
                    message, end = decoder.raw_decode(text.lstrip())
                except json.JSONDecodeError:
                    continue
                text = text.lstrip()[end:]
                for operation in message.get("operations", ()):
                    if operation["name"] == name:
                        return dict(operation)
        finally:
            watch.terminate()
    raise AssertionError(f"the watch ended without {name}")


def test_reflection_lists_every_service(platform: Platform) -> None:
    listed = curl(platform, "--list-services", f"http://{platform.address}")
    assert listed.returncode == 0, listed.stderr
    services = set(listed.stdout.split())
    assert services >= {
        f"tinker.v1.{name}Service"
        for name in ("Capability", "Checkpoint", "Operation", "Sampling", "Session", "Training")
    }
    assert "grpc.health.v1.Health" in services


def test_the_main_job_with_nothing_but_curl(platform: Platform) -> None:
    capabilities = call(platform, "CapabilityService/GetServerCapabilities", {})
    assert [model["modelName"] for model in capabilities["supportedModels"]] == [BASE_MODEL]
    session = call(platform, "SessionService/CreateSession", {})["sessionId"]
    created = call(
        platform,
        "TrainingService/CreateTrainingRun",
        {"session_id": session, "base_model": BASE_MODEL, "lora_config": {"rank": 4}},
    )
    assert finished(platform, created["name"])["response"]["trainingRun"]["baseModel"] == BASE_MODEL
    run = created["name"].rpartition(":")[0]
    saving = call(platform, "TrainingService/SaveWeightsForSampler", {"training_run_id": run, "name": "fresh"})
    path = finished(platform, saving["name"])["response"]["path"]
    sampling = call(platform, "SamplingService/CreateSamplingSession", {"session_id": session, "model_path": path})[
        "samplingSessionId"
    ]
    request = {
        "sampling_session_id": sampling,
        "prompt": {"chunks": [{"encoded_text": {"tokens": [5, 6, 7]}}]},
        "sampling_params": {"max_tokens": 4, "stop": {}},
    }
    operation = finished(platform, call(platform, "SamplingService/Sample", request)["name"])
    assert len(operation["response"]["sequences"][0]["tokens"]) == 4


def test_a_wrong_key_gets_a_sentence(platform: Platform) -> None:
    url = f"http://{platform.address}/tinker.v1.CapabilityService/GetServerCapabilities"
    refused = curl(platform, "-H", "x-api-key: tml-wrong", url, body={})
    assert refused.returncode != 0
    assert json.loads(refused.stderr)["code"] == "unauthenticated"
    assert "keys create" in refused.stderr


def test_health_and_metrics_over_http(platform: Platform) -> None:
    base = f"http://127.0.0.1:{platform.http_port}"
    with urllib.request.urlopen(f"{base}/healthz", timeout=10) as reply:
        assert json.load(reply) == {"status": "ok"}
    with urllib.request.urlopen(f"{base}/metrics", timeout=10) as reply:
        assert b"process_resident_memory_bytes" in reply.read()


def test_the_gateway_process_has_no_torch_in_memory(platform: Platform) -> None:
    def maps_torch(process: psutil.Process) -> bool:
        return any("torch" in Path(mapped.path).name for mapped in process.memory_maps())

    assert not maps_torch(platform.child("gateway"))
    assert maps_torch(platform.child("trainer")), "the check can see torch where it is"


@pytest.mark.parametrize("module", ["services.gateway.main", "services.cli.main", "tinker_client"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert module in done.stdout.split()
    assert not {"torch", "peft"} & set(done.stdout.split())


def test_the_command_line_tells_health_and_refuses_unknown_settings(platform: Platform) -> None:
    command = [sys.executable, "-m", "services.cli.main"]
    healthy = subprocess.run([*command, "health", platform.address], capture_output=True, text=True, check=False)
    assert healthy.returncode == 0
    environment = {"TINKER_GRPC_PROT": "1", "PATH": ""}
    refused = subprocess.run(
        [*command, "gateway"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert refused.returncode == 2
    assert "TINKER_GRPC_PROT" in refused.stderr


def test_keys_are_made_listed_and_revoked_on_the_command_line(platform: Platform) -> None:
    def keys(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli.main", "keys", *words, "--data-dir", str(platform.data_dir)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    key = keys("create", "--tenant", "carol").stdout.strip()
    assert key.startswith("tml-")
    listed = keys("list").stdout
    assert "carol" in listed
    assert key not in listed
    (key_id,) = [line.split()[0] for line in listed.splitlines() if "carol" in line]
    assert keys("revoke", key_id).returncode == 0
    assert "carol" not in keys("list").stdout
