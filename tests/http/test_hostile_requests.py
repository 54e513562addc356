"""Random requests to every route never fail inside: whatever they say, the answer is a result or a refusal."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.core.config import Settings
from services.gateway.http.sdk import futures
from tests.gateway.caller import BASE
from tests.gateway.hostile import Fuzzer
from tests.http.test_futures import create, sampling_session
from tinker_proto.sdk.v1 import sdk_pb2

POSTS = {
    "client/config": (),
    "create_session": ("tags", "user_metadata", "sdk_version", "project_id", "display_name"),
    "session_heartbeat": ("session_id",),
    "create_model": ("session_id", "model_seq_id", "base_model", "lora_config", "optimizer_config", "user_metadata"),
    "get_info": ("model_id",),
    "optim_step": ("model_id", "seq_id", "adam_params", "optimizer_params"),
    "save_weights": ("model_id", "seq_id", "path", "ttl_seconds", "overwrite", "user_metadata"),
    "save_weights_for_sampler": ("model_id", "seq_id", "path", "sampling_session_seq_id", "kind", "ttl_seconds"),
    "save_weights_external": ("model_id", "seq_id", "path", "ttl_seconds", "age_encryption_recipients"),
    "load_weights": ("model_id", "seq_id", "session_id", "model_seq_id", "path", "optimizer", "base_model"),
    "create_sampling_session": ("session_id", "sampling_session_seq_id", "base_model", "model_path"),
    "asample": ("sampling_session_id", "seq_id", "num_samples", "prompt", "sampling_params", "target_prompt_logprobs"),
    "join_sampling_session": ("sampling_session_id",),
    "retrieve_future": ("request_id", "allow_metadata_only"),
    "retrieve_futures": ("target", "prev_cursor", "timeout", "retrieved_request_ids"),
    "cancel_future": ("request_id",),
    "weights_info": ("tinker_path",),
    "telemetry": ("events",),
}
VALUES = (
    None,
    True,
    0,
    1,
    -1,
    2**31,
    2**53,
    2**63,
    1e300,
    "",
    "x",
    "é漢\0",
    "inflight",
    "a" * 3000,
    [],
    {},
    [{}],
    [1, "x"],
)
OBJECTS: tuple[Any, ...] = (
    {"rank": 4},
    {"rank": 2**31 - 1, "seed": -(2**63)},
    {"type": "adamw"},
    {"learning_rate": 1, "beta1": 2, "beta2": -1, "eps": 0, "weight_decay": 0, "grad_clip_norm": 0},
    {"chunks": [{"tokens": [1, 2], "type": "encoded_text"}]},
    {"chunks": [{"tokens": [], "type": "encoded_text"}, {"type": "image", "data": "AA==", "format": "png"}]},
    {"max_tokens": 2**31 - 1, "stop": [], "top_p": 5, "temperature": -1},
    {"stop": ["a"] * 100},
    {"data": [1, 2], "dtype": "int64", "shape": [1, 2]},
    {"data": [], "dtype": "float32", "shape": [2**62, 4]},
    {"data": [], "dtype": "int64", "shape": [0, 0]},
)


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures, "HOLD_S", 0.0)


async def test_random_json_is_answered_or_refused(http: httpx.AsyncClient) -> None:
    run, sampling = await create(http), await sampling_session(http)
    session = run.partition(":")[0]
    right = {
        "session_id": session,
        "model_id": run,
        "sampling_session_id": sampling,
        "request_id": f"{run}:0",
        "path": f"tinker://{run}/weights/x",
        "tinker_path": f"tinker://{run}/weights/x",
        "base_model": BASE,
        "target": {"sampling_session_id": sampling},
        "lora_config": OBJECTS[0],
        "prompt": {"chunks": [{"tokens": [1, 2], "type": "encoded_text"}]},
        "sampling_params": {},
        "tags": [],
        "user_metadata": {"a": "b"},
        "kind": "inflight",
    }
    chosen, answered, seq_ids = random.Random(4), set(), itertools.count()
    options = (*VALUES, *OBJECTS, *right.values())
    for round_number in range(60):
        for path, names in POSTS.items():
            usual = {
                **right,
                "seq_id": next(seq_ids),
                "model_seq_id": round_number,
                "sampling_session_seq_id": round_number,
            }
            content = {name: usual[name] for name in names if name in usual and chosen.random() < 0.95}
            for name in chosen.sample(names, min(len(names), chosen.randrange(3))):
                content[name] = chosen.choice(options)
            answer = await http.post(path, json=content)
            assert answer.status_code < 500, (path, content, answer.text)
            assert answer.status_code != 409
            answered.add((path, answer.status_code // 100))
    assert {path for path, status in answered if status == 2} >= set(POSTS) - {"weights_info", "retrieve_future"}
    assert {path for path, status in answered if status == 4} >= set(POSTS) - {"client/config", "telemetry"}


async def test_random_protobuf_is_answered_or_refused(http: httpx.AsyncClient) -> None:
    run = await create(http)
    fuzzer = Fuzzer(5, [run])
    headers = {"content-type": "application/x-protobuf"}
    statuses = set()
    for seq_id in range(1, 200):
        request = sdk_pb2.ForwardBackwardRequest()
        fuzzer.fill(request)
        request.model_id, request.seq_id = run, seq_id
        answer = await http.post("forward_backward", content=request.SerializeToString(), headers=headers)
        assert answer.status_code < 500, (request, answer.text)
        statuses.add(answer.status_code)
        if answer.status_code == 200:
            result = await http.post("retrieve_future", json={"request_id": f"{run}:{seq_id}"})
            assert result.status_code in (200, 408), result.text
    assert 200 in statuses


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST", "PATCH", "HEAD"])
async def test_paths_of_every_form_are_answered(http: httpx.AsyncClient, method: str) -> None:
    run = await create(http)
    for path in (
        "",
        "training_runs",
        f"training_runs/{run}",
        f"training_runs/{run}/checkpoints",
        f"training_runs/{run}/checkpoints/weights/x",
        f"training_runs/{run}/checkpoints/nothing/x/publish",
        "training_runs/%00/checkpoints/weights/x/ttl",
        f"training_runs/{run}/checkpoints/external_weights/x/archive",
        f"training_runs/{run}/checkpoints/weights/x/external_weights_urls",
        "samplers/x",
        "sessions/%ff",
        "sessions/x/finish",
        "downloads/a.b/c",
        "checkpoints?limit=5",
        "billing/usage/events",
        "x" * 5000,
    ):
        answer = await http.request(method, path, content=b"{}", headers={"content-type": "application/json"})
        assert answer.status_code < 500, (path, answer.text)
