"""What is said on the wire: order, resends, refusals in their places, overload, held answers, cursors, tenants."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from services.core.names import OperationName
from services.gateway.http.errors import PAUSE_S
from services.gateway.http.sdk import futures
from services.gateway.stores import Stores
from testing.waiting import until
from tests.gateway.caller import BASE
from tinker_proto.sdk.v1 import sdk_pb2
from tinker_proto.tensor import from_array
from tinker_proto.v1 import training_pb2

PROTOBUF = {"content-type": "application/x-protobuf"}
ADAM = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, "grad_clip_norm": 0.0}


async def open_session(http: httpx.AsyncClient) -> str:
    answer = await http.post("create_session", json={"tags": [], "user_metadata": None, "sdk_version": "0"})
    return str(answer.json()["session_id"])


async def create(http: httpx.AsyncClient) -> str:
    fields = {"session_id": await open_session(http), "model_seq_id": 0, "base_model": BASE}
    answer = await http.post("create_model", json={**fields, "lora_config": {"rank": 4}, "type": "create_model"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_id"])


async def sampling_session(http: httpx.AsyncClient) -> str:
    fields = {"session_id": await open_session(http), "sampling_session_seq_id": 0, "base_model": BASE}
    return str((await http.post("create_sampling_session", json=fields)).json()["sampling_session_id"])


async def sample(http: httpx.AsyncClient, sampling: str, seq_id: int, **changes: Any) -> httpx.Response:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
    fields = {"sampling_session_id": sampling, "seq_id": seq_id, "prompt": prompt, "sampling_params": {}, **changes}
    return await http.post("asample", json=fields)


def loss(run: str, seq_id: int, *, targets: int = 4, **changes: Any) -> bytes:
    request = sdk_pb2.ForwardBackwardRequest(model_id=run, seq_id=seq_id, loss_fn="cross_entropy", **changes)
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = np.arange(4, dtype="<i4").tobytes()
    target = datum.loss_fn_inputs["target_tokens"]
    target.dtype, target.dense = sdk_pb2.DATA_TYPE_INT64, np.arange(targets, dtype="<i8").tobytes()
    return request.SerializeToString()


async def submit(http: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await http.post("forward_backward", content=content, headers=PROTOBUF)


async def logged(stores: Stores, run: str) -> list[int]:
    return [entry.seq_id for entry in await stores.run_logs.entries(run, -1, 100)]


async def test_a_chunk_that_arrives_early_waits_for_the_first_one(http: httpx.AsyncClient, stores: Stores) -> None:
    run = await create(http)
    assert (await submit(http, loss(run, 2))).json() == {"request_id": f"{run}:2", "model_id": run}
    assert await logged(stores, run) == [0]
    await submit(http, loss(run, 1))
    assert await logged(stores, run) == [0, 1, 2]


async def test_a_resend_is_the_same_future_and_another_request_is_refused(
    http: httpx.AsyncClient, stores: Stores
) -> None:
    run = await create(http)
    first, again = await submit(http, loss(run, 1)), await submit(http, loss(run, 1))
    assert first.json() == again.json()
    assert await logged(stores, run) == [0, 1]
    other = await submit(http, loss(run, 1, forward_only=True))
    assert (other.status_code, other.json()["reason"]) == (400, "SEQ_ID_USED")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"targets": 3}, "target_tokens"),
        ({"loss_fn_config_v2": {"beta": sdk_pb2.LossConfigValue(text="x")}}, "beta"),
        ({"loss_fn_config": {"nothing": 1.0}}, "nothing"),
    ],
)
async def test_a_refused_operation_is_queued_in_order_and_fails_by_its_future(
    http: httpx.AsyncClient, stores: Stores, changes: dict[str, Any], field: str
) -> None:
    run = await create(http)
    future = await submit(http, loss(run, 1, **changes))
    assert future.status_code == 200
    fields = {"model_id": run, "seq_id": 2, "adam_params": ADAM}
    assert (await http.post("optim_step", json=fields)).status_code == 200
    assert await logged(stores, run) == [0, 1, 2]
    result = await http.post("retrieve_future", json={"request_id": future.json()["request_id"]})
    assert (result.status_code, result.json()["category"]) == (200, "user")
    assert field in result.json()["error"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("optim_step", {"optimizer_params": {"type": "dimuon", "learning_rate": 0.1}}),
        ("optim_step", {}),
        ("save_weights", {"path": "../x"}),
        ("save_weights", {"path": "x", "ttl_seconds": 5}),
        ("save_weights_for_sampler", {}),
        ("save_weights_for_sampler", {"path": "x", "kind": "inflight"}),
        ("save_weights_external", {"path": "x", "age_encryption_recipients": ["age1"]}),
        ("save_weights_external", {"path": "x", "age_encryption_recipients": ["age1" + "q" * 58] * 21}),
        ("load_weights", {"path": "tinker://a:train:0/sampler_weights/x"}),
        ("load_weights", {"path": "tinker://a:train:0/weights/x", "weights_access_token": "t"}),
    ],
)
async def test_whatever_cannot_be_carried_out_fails_by_its_future(
    http: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    run = await create(http)
    future = await http.post(path, json={"model_id": run, "seq_id": 1, **fields})
    assert future.status_code == 200, future.text
    result = await http.post("retrieve_future", json={"request_id": f"{run}:1"})
    assert result.json()["category"] == "user"
    assert result.json()["error"]


async def test_a_nan_that_the_sdk_writes_as_null_is_called_one(http: httpx.AsyncClient) -> None:
    run = await create(http)
    await http.post("optim_step", json={"model_id": run, "seq_id": 1, "adam_params": {**ADAM, "learning_rate": None}})
    failed = (await http.post("retrieve_future", json={"request_id": f"{run}:1"})).json()
    said = "null, which is how NaN and infinity are written in JSON"
    assert failed == {"error": f"adam_params.learning_rate: must be finite (got {said})", "category": "user"}
    answer = await sample(http, await sampling_session(http), 0, sampling_params={"temperature": None})
    assert answer.json()["detail"] == f"sampling_params.temperature: must be a valid number (got {said})"


async def test_a_session_keeps_a_configuration_as_one_label(http: httpx.AsyncClient) -> None:
    config = json.dumps({f"option {i}": [i] * 10 for i in range(400)})
    assert 10_000 < len(config) < 32_768
    made = await http.post("create_session", json={"user_metadata": {"config": config}})
    found = await http.get(f"sessions/{made.json()['session_id']}")
    assert found.json()["user_metadata"] == {"config": config}
    for labels in ({"config": "x" * 32_769}, {"x" * 1025: ""}, {str(i): "x" * 32_768 for i in range(5)}):
        refused = await http.post("create_session", json={"user_metadata": labels})
        assert refused.json()["violations"][0]["field"].startswith("user_metadata")


async def test_a_reused_seq_id_gives_no_sampling_session_to_a_named_save(
    http: httpx.AsyncClient, stores: Stores
) -> None:
    run = await create(http)
    fields = {"model_id": run, "seq_id": 1}
    assert (await http.post("save_weights_for_sampler", json={**fields, "path": "kept"})).status_code == 200
    reused = await http.post("save_weights_for_sampler", json={**fields, "sampling_session_seq_id": 0})
    assert (reused.status_code, reused.json()["reason"]) == (400, "SEQ_ID_USED")
    lease = await stores.run_logs.claim("w", run, "0-0", 10_000)
    assert lease is not None
    saved = training_pb2.SaveWeightsForSamplerResponse(path=f"tinker://{run}/sampler_weights/kept")
    await stores.run_logs.complete(lease, 1, await stores.operations.result(saved))
    result = await http.post("retrieve_future", json={"request_id": f"{run}:1"})
    assert result.json() == {"path": saved.path}


async def test_a_result_larger_than_a_message_arrives_whole(http: httpx.AsyncClient, stores: Stores) -> None:
    run = await create(http)
    await submit(http, loss(run, 1))
    lease = await stores.run_logs.claim("w", run, "0-0", 10_000)
    assert lease is not None
    logprobs = np.arange(20 << 20, dtype=np.float32)
    output = training_pb2.LossFnOutput(tensors={"logprobs": from_array(logprobs)})
    response = training_pb2.ForwardBackwardResponse(metrics={"loss:sum": 1.0}, loss_fn_outputs=[output])
    await stores.run_logs.complete(lease, 1, await stores.operations.result(response))
    answer = await http.post("retrieve_future", json={"request_id": f"{run}:1"})
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(answer.content)))
    (record,) = sdk_pb2.ForwardBackwardOutput.FromString(answer.content).loss_fn_outputs
    assert record.fields["logprobs"].data == logprobs.tobytes()


async def test_a_full_queue_says_when_to_come_again(http: httpx.AsyncClient) -> None:
    run = await create(http)
    answers = [await submit(http, loss(run, seq_id)) for seq_id in (1, 2, 3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after-ms"]) > 0


async def test_an_answer_is_held_until_there_is_one(http: httpx.AsyncClient, stores: Stores) -> None:
    run = await create(http)
    await submit(http, loss(run, 1))
    waiting = asyncio.create_task(http.post("retrieve_future", json={"request_id": f"{run}:1"}))
    await until(lambda: f"{run}:1" in stores.events.expected)
    await stores.operations.cancel(OperationName(run, 1))
    assert (await waiting).json() == {"error": f"operation {run}:1 was cancelled", "category": "user"}


async def test_a_pending_result_is_408_once_the_hold_is_over(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(futures, "HOLD_S", 0.05)
    run = await create(http)
    await submit(http, loss(run, 1))
    answer = await http.post("retrieve_future", json={"request_id": f"{run}:1", "allow_metadata_only": True})
    assert answer.status_code == 408
    waits = {"queue_state": "active", "queue_state_reason": "operations before it: 1"}
    assert answer.json() == {"type": "try_again", "request_id": f"{run}:1", **waits}


async def test_a_stopping_gateway_does_not_let_anybody_spin(
    http: httpx.AsyncClient, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await create(http)
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("services.gateway.http.sdk.futures.asyncio.sleep", pause)
    stores.events.shut()
    assert (await http.post("retrieve_future", json={"request_id": f"{run}:0"})).status_code == 408
    assert pauses == [PAUSE_S]


async def test_a_cursor_sees_each_finished_sample_once(http: httpx.AsyncClient, stores: Stores) -> None:
    sampling = await sampling_session(http)
    clone = 3_000_000_000
    for seq_id in (0, 5, clone):
        answer = await sample(http, sampling, seq_id, num_samples=2)
        assert answer.json()["sample_sequence_ids"] == [f"{sampling}:{seq_id}:{i}" for i in range(2)]
    seen: list[str] = []
    cursor = 0
    for seq_id in (5, clone, 0):
        await http.post("cancel_future", json={"request_id": f"{sampling}:{seq_id}"})
        target = {"sampling_session_id": sampling, "cloned_sampler_id": 0}
        fields = {"target": target, "prev_cursor": cursor, "timeout": 0, "retrieved_request_ids": seen}
        answer = (await http.post("retrieve_futures", json=fields)).json()
        seen += [entry["request_id"] for entry in answer["completions"]]
        assert all(entry["state"] == "failed" for entry in answer["completions"])
        assert answer["cursor"] >= cursor
        cursor = answer["cursor"]
    assert seen == [f"{sampling}:5", f"{sampling}:0"]


async def test_a_cursor_that_the_events_have_left_behind_is_refused(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.core.queue.keyspace.EVENTS_KEPT", 1)
    sampling = await sampling_session(http)
    await sample(http, sampling, 0)
    await http.post("cancel_future", json={"request_id": f"{sampling}:0"})
    fields = {"target": {"sampling_session_id": sampling}, "timeout": 0}
    now = (await http.post("retrieve_futures", json={**fields, "prev_cursor": 0})).json()["cursor"]
    assert (await http.post("retrieve_futures", json={**fields, "prev_cursor": now})).status_code == 200
    old = await http.post("retrieve_futures", json={**fields, "prev_cursor": 1})
    assert (old.status_code, old.json()["reason"]) == (400, "CURSOR_EXPIRED")


async def test_inflight_weights_never_become_older(http: httpx.AsyncClient, stores: Stores) -> None:
    run, sampling = await create(http), await sampling_session(http)
    opened, _ = await stores.catalog.sampling_session(sampling, "alice")
    opened.sampling_session_id = f"{run.partition(':')[0]}:sample:0"
    await stores.catalog.add_sampling_session("alice", opened, "first", run)
    for seq_id in (5, 3):
        await stores.catalog.publish_inflight(
            run, seq_id, f"saved-{seq_id}", f"tinker://{run}/sampler_weights/{seq_id}"
        )
    now, location = await stores.catalog.sampling_session(opened.sampling_session_id, "alice")
    assert (location, now.model_path) == ("saved-5", f"tinker://{run}/sampler_weights/5")


async def test_a_wait_for_samples_ends_when_one_finishes(http: httpx.AsyncClient, stores: Stores) -> None:
    sampling = await sampling_session(http)
    await sample(http, sampling, 0)
    fields = {"target": {"sampling_session_id": sampling}}
    waiting = asyncio.create_task(http.post("retrieve_futures", json=fields))
    await asyncio.sleep(0)
    await stores.operations.cancel(OperationName(sampling, 0))
    assert [entry["request_id"] for entry in (await waiting).json()["completions"]] == [f"{sampling}:0"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt_alt_tokens_k": 101}, "prompt_alt_tokens_k"),
        ({"num_samples": 0}, "num_samples"),
        ({"sampling_params": {"temperature": -1.0}}, "temperature"),
        ({"sampling_params": {"stop": [5, "x"]}}, "stop"),
        ({"prompt": {"chunks": [{"type": "image_asset_pointer", "format": "png", "location": "x"}]}}, "chunks"),
        ({"prompt": {"chunks": [{"type": "image", "format": "png", "data": "!"}]}}, "data"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [2**31]}]}}, "tokens"),
        ({"target_prompt_logprobs": {"data": [-2], "dtype": "int64", "shape": [1, 1]}}, "target_prompt_logprobs"),
        ({"target_prompt_logprobs": {"data": [1, 2], "dtype": "int64", "shape": [1]}}, "target_prompt_logprobs"),
        ({"seq_id": 2**63}, "seq_id"),
    ],
)
async def test_a_sample_that_cannot_be_carried_out_is_refused_by_name(
    http: httpx.AsyncClient, changes: dict[str, Any], field: str
) -> None:
    answer = await sample(http, await sampling_session(http), **{"seq_id": 0, **changes})
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["detail"]


async def test_a_sample_may_ask_to_record_what_its_result_has_anyway(http: httpx.AsyncClient) -> None:
    answer = await sample(http, await sampling_session(http), 0, record_stability_info=True)
    assert answer.status_code == 200, answer.text


async def test_a_session_that_was_finished_is_gone(http: httpx.AsyncClient) -> None:
    session = await open_session(http)
    assert (await http.post("session_heartbeat", json={"session_id": session})).status_code == 200
    for _ in range(2):
        reason = {"reason": {"type": "success"}, "detail": None}
        assert (await http.post(f"sessions/{session}/finish", json=reason)).status_code == 204
    assert (await http.post("session_heartbeat", json={"session_id": session})).status_code == 410


async def test_what_is_anothers_does_not_exist(http: httpx.AsyncClient, stores: Stores) -> None:
    run, sampling = await create(http), await sampling_session(http)
    http.headers["x-api-key"], _ = await stores.api_keys.create("mallory")
    session = run.partition(":")[0]
    answers = [
        await submit(http, loss(run, 1)),
        await sample(http, sampling, 0),
        await http.post("get_info", json={"model_id": run}),
        await http.post("retrieve_future", json={"request_id": f"{run}:0"}),
        await http.post("cancel_future", json={"request_id": f"{run}:0"}),
        await http.post("retrieve_futures", json={"target": {"sampling_session_id": sampling}}),
        await http.post("session_heartbeat", json={"session_id": session}),
        await http.post("join_sampling_session", json={"sampling_session_id": sampling}),
        await http.post("save_weights_for_sampler", json={"model_id": run, "seq_id": 1, "sampling_session_seq_id": 0}),
        await http.get(f"samplers/{sampling}"),
        await http.get(f"sessions/{session}"),
        await http.get(f"training_runs/{run}"),
        await http.get(f"training_runs/{run}/checkpoints"),
    ]
    assert [answer.status_code for answer in answers] == [404] * len(answers)
    assert (await http.get("training_runs")).json()["training_runs"] == []


async def test_clients_of_one_sampling_session_get_numbers_of_their_own(http: httpx.AsyncClient) -> None:
    fields = {"sampling_session_id": await sampling_session(http)}
    counters = [(await http.post("join_sampling_session", json=fields)).json()["client_counter"] for _ in range(3)]
    assert counters == [1, 2, 3]


async def test_a_sample_may_have_any_seq_id_of_64_bits(http: httpx.AsyncClient) -> None:
    """Copies of sampling clients of releases up to 0.31 number their requests from up to 10^18."""
    sampling = await sampling_session(http)
    for seq_id in (10**18, 2**63 - 1):
        assert (await sample(http, sampling, seq_id)).json()["request_id"] == f"{sampling}:{seq_id}"
    refused = await sample(http, sampling, 2**63)
    assert refused.json()["violations"][0]["field"] == "seq_id"


async def test_a_finished_session_refuses_work(http: httpx.AsyncClient, stores: Stores) -> None:
    run, sampling = await create(http), await sampling_session(http)
    for name in (run, sampling):
        reason = {"reason": {"type": "success"}, "detail": None}
        assert (await http.post(f"sessions/{name.partition(':')[0]}/finish", json=reason)).status_code == 204
    step = {"model_id": run, "seq_id": 1, "adam_params": ADAM}
    answers = [
        await submit(http, loss(run, 1)),
        await http.post("optim_step", json=step),
        await sample(http, sampling, 0),
    ]
    assert {(answer.status_code, answer.json()["reason"]) for answer in answers} == {(400, "SESSION_ENDED")}
    assert await logged(stores, run) == [0]
