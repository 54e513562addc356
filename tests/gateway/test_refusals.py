"""Bad input is refused by the path of the field at fault, and the run goes on."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.gateway.stores import Stores
from tests.gateway.caller import (
    BASE,
    Caller,
    datum,
    fields_at_fault,
    forward_backward,
    open_caller,
    tokens,
)
from tinker_proto.tensor import from_array
from tinker_proto.v1 import (
    capability_pb2,
    checkpoint_pb2,
    data_pb2,
    operation_pb2,
    sampling_pb2,
    session_pb2,
    training_pb2,
)

ADAM = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}
WEIGHTS = 'data[0].loss_fn_inputs["weights"]'
TARGETS = 'data[0].loss_fn_inputs["target_tokens"]'
IMAGE = data_pb2.ModelInput(chunks=[data_pb2.Chunk(image=data_pb2.ImageChunk(data=b"x", format="png"))])


def bad_tensor(**fields: Any) -> data_pb2.Datum:
    broken = datum()
    broken.loss_fn_inputs["weights"].CopyFrom(data_pb2.Tensor(**fields))
    return broken


BAD_FORWARD_BACKWARD = {
    "data": ({"data": []}, "data"),
    "unknown loss": ({"loss_fn": "cross_entropie"}, "loss_fn"),
    "unknown option": ({"loss_fn_config": {"beta": 1.0}}, 'loss_fn_config["beta"]'),
    "negative option": ({"loss_fn": "dro", "loss_fn_config": {"beta": -1.0}}, 'loss_fn_config["beta"]'),
    "thresholds that cross": (
        {"loss_fn": "ppo", "loss_fn_config": {"clip_low_threshold": 1.5}},
        'loss_fn_config["clip_low_threshold"]',
    ),
    "missing input": (
        {"data": [data_pb2.Datum(model_input=tokens(1, 2))]},
        TARGETS,
    ),
    "unknown input": ({"data": [datum(advantages=np.ones(4, np.float32))]}, 'data[0].loss_fn_inputs["advantages"]'),
    "wrong length": ({"data": [datum(), datum(target_tokens=np.arange(5))]}, TARGETS.replace("0", "1", 1)),
    "wrong shape": ({"data": [datum(weights=np.ones((4, 2), np.float32))]}, WEIGHTS),
    "wrong dtype": ({"data": [datum(weights=np.ones(4, np.int32))]}, WEIGHTS),
    "an integer that float32 has not": ({"data": [datum(weights=np.array([1, 2, 2**24 + 1, 0]))]}, WEIGHTS),
    "targets of float": ({"data": [datum(target_tokens=np.ones(4, np.float32))]}, TARGETS),
    "NaN": ({"data": [datum(weights=np.array([1, np.nan, 1, 1], np.float32))]}, WEIGHTS),
    "infinity": ({"data": [datum(weights=np.array([1, np.inf, 1, 1], np.float32))]}, WEIGHTS),
    "truncated tensor": ({"data": [bad_tensor(dtype=data_pb2.DATA_TYPE_FLOAT32, shape=[4], dense=b"abc")]}, WEIGHTS),
    "no layout": ({"data": [bad_tensor(dtype=data_pb2.DATA_TYPE_FLOAT32, shape=[4])]}, WEIGHTS),
    "target outside vocabulary": ({"data": [datum(target_tokens=np.array([1, 2, 3, 100]))]}, TARGETS),
    "negative target": ({"data": [datum(target_tokens=np.array([1, 2, 3, -1]))]}, TARGETS),
    "token outside vocabulary": (
        {"data": [data_pb2.Datum(model_input=tokens(1, 100), loss_fn_inputs=datum(2).loss_fn_inputs)]},
        "data[0].model_input.chunks[0].encoded_text.tokens",
    ),
    "over-long": ({"data": [datum(33)]}, "data[0].model_input"),
    "empty": ({"data": [data_pb2.Datum(loss_fn_inputs=datum(1).loss_fn_inputs)]}, "data[0].model_input"),
    "image": (
        {"data": [data_pb2.Datum(model_input=IMAGE, loss_fn_inputs=datum(1).loss_fn_inputs)]},
        "data[0].model_input.chunks[0].image",
    ),
    "chunk without content": (
        {"data": [data_pb2.Datum(model_input=data_pb2.ModelInput(chunks=[data_pb2.Chunk()]))]},
        "data[0].model_input.chunks[0]",
    ),
}


@pytest.mark.parametrize(("changes", "field"), BAD_FORWARD_BACKWARD.values(), ids=BAD_FORWARD_BACKWARD)
async def test_bad_training_data_fails_by_field_and_the_next_one_is_queued(
    alice: Caller, stores: Stores, changes: dict[str, Any], field: str
) -> None:
    run = await alice.run()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.training.ForwardBackward(forward_backward(run, 1, **changes))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(refused.value) == [field]
    recorded = await alice.operations.GetOperation(operation_pb2.GetOperationRequest(name=f"{run}:1"))
    assert recorded.error.field_violations[0].field == field
    following = await alice.training.ForwardBackward(forward_backward(run, 2))
    assert following.state == operation_pb2.OPERATION_STATE_QUEUED
    assert [entry.seq_id for entry in await stores.run_logs.entries(run, after=-1, count=9)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", None),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("eps", 0.0),
        ("weight_decay", -1e-9),
        ("grad_clip_norm", float("inf")),
    ],
)
async def test_bad_adam_params_name_their_field(alice: Caller, name: str, value: float | None) -> None:
    run = await alice.run()
    params = training_pb2.AdamParams(**{**ADAM, name: value})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.training.OptimStep(training_pb2.OptimStepRequest(training_run_id=run, seq_id=1, adam_params=params))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(refused.value) == [f"adam_params.{name}"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "../x", "x" * 201, "a\0b", "é"])
async def test_bad_checkpoint_names_are_refused(alice: Caller, name: str) -> None:
    run = await alice.run()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.training.SaveState(training_pb2.SaveStateRequest(training_run_id=run, seq_id=1, name=name))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(refused.value) == ["name"]


@pytest.mark.parametrize(
    "path", ["tinker://../..", "tinker://../weights/x", "/etc/passwd", "tinker://a/weights/..", "tinker://a//b", ""]
)
async def test_paths_that_escape_are_refused(alice: Caller, path: str) -> None:
    run = await alice.run()
    calls = [
        alice.training.LoadState(training_pb2.LoadStateRequest(training_run_id=run, seq_id=1, path=path)),
        alice.checkpoints.GetCheckpoint(checkpoint_pb2.GetCheckpointRequest(tinker_path=path)),
        alice.checkpoints.DeleteCheckpoint(checkpoint_pb2.DeleteCheckpointRequest(tinker_path=path)),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert fields_at_fault(refused.value) in (["path"], ["tinker_path"])


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"rank": 0}, "lora_config.rank"),
        ({"rank": 17}, "lora_config.rank"),
        ({"rank": -1}, "lora_config.rank"),
        ({"train_mlp": False, "train_attn": False, "train_unembed": False}, "lora_config"),
        ({"alpha": 0}, "lora_config.alpha"),
        ({"own_alpha": 0.5}, "lora_config.own_alpha"),
        ({"rank_pattern": {"q_proj": 2}}, "lora_config.rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2.0}}, "lora_config.alpha_pattern"),
        ({"target_modules": ["q_proj", "router"]}, "lora_config.target_modules[1]"),
        ({"target_modules": ["q_proj", "q_proj"]}, "lora_config.target_modules[1]"),
        ({"target_modules": ["q_proj"], "train_mlp": True}, "lora_config.target_modules"),
    ],
)
async def test_bad_lora_configs_are_refused(alice: Caller, config: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.run(**config)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(refused.value) == [field]


async def test_an_unknown_base_model_is_refused_with_those_that_are_served(alice: Caller) -> None:
    session = await alice.session()
    request = training_pb2.CreateTrainingRunRequest(
        session_id=session, base_model="gpt-17", lora_config=training_pb2.LoraConfig(rank=4)
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.training.CreateTrainingRun(request)
    assert fields_at_fault(refused.value) == ["base_model"]
    assert BASE in str(refused.value.details())


def targets(*rows: list[int]) -> dict[str, Any]:
    return {"target_prompt_logprobs": from_array(np.array(rows, dtype=np.int64))}


BAD_SAMPLES = {
    "empty prompt": ({"prompt": tokens()}, "prompt"),
    "image": ({"prompt": IMAGE}, "prompt.chunks[0].image"),
    "vocabulary": ({"prompt": tokens(100)}, "prompt.chunks[0].encoded_text.tokens"),
    "prompt fills the context": ({"prompt": tokens(*[1] * 32)}, "prompt"),
    "too long together": ({"sampling_params": {"max_tokens": 30}}, "sampling_params.max_tokens"),
    "no tokens": ({"sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens"),
    "top_p 0": ({"sampling_params": {"top_p": 0.0}}, "sampling_params.top_p"),
    "top_p NaN": ({"sampling_params": {"top_p": float("nan")}}, "sampling_params.top_p"),
    "negative temperature": ({"sampling_params": {"temperature": -0.1}}, "sampling_params.temperature"),
    "infinite temperature": ({"sampling_params": {"temperature": float("inf")}}, "sampling_params.temperature"),
    "top_k -2": ({"sampling_params": {"top_k": -2}}, "sampling_params.top_k"),
    "10,000 stops": ({"sampling_params": {"stop": {"strings": ["x"] * 10_000}}}, "sampling_params.stop.strings"),
    "empty stop": ({"sampling_params": {"stop": {"strings": [""]}}}, "sampling_params.stop.strings[0]"),
    "mixed stops": ({"sampling_params": {"stop": {"strings": ["x"], "token_ids": [1]}}}, "sampling_params.stop"),
    "stop token": ({"sampling_params": {"stop": {"token_ids": [100]}}}, "sampling_params.stop.token_ids[0]"),
    "num_samples": ({"num_samples": 1025}, "num_samples"),
    "negative num_samples": ({"num_samples": -1}, "num_samples"),
    "topk": ({"topk_prompt_logprobs": 101}, "topk_prompt_logprobs"),
    "topk of samples": ({"topk_sample_logprobs": 101}, "topk_sample_logprobs"),
    "negative topk": ({"topk_sample_logprobs": -1}, "topk_sample_logprobs"),
    "last 0": ({"include_prompt_logprobs": True, "prompt_logprobs_last_n": 0}, "prompt_logprobs_last_n"),
    "last 4 of 3": ({"include_prompt_logprobs": True, "prompt_logprobs_last_n": 4}, "prompt_logprobs_last_n"),
    "last of nothing": ({"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n"),
    "targets of 2 rows": (targets([1], [2]), "target_prompt_logprobs"),
    "flat targets": ({"target_prompt_logprobs": from_array(np.arange(3))}, "target_prompt_logprobs"),
    "targets of floats": (
        {"target_prompt_logprobs": from_array(np.ones((3, 1), np.float32))},
        "target_prompt_logprobs",
    ),
    "too many in the place of a token": ({"prompt_alt_tokens_k": 101}, "prompt_alt_tokens_k"),
    "in the place of tokens that are not scored": (
        {"prompt_alt_tokens_k": 1, "prompt_logprobs_last_n": 1, "include_prompt_logprobs": True},
        "prompt_alt_tokens_k",
    ),
    "no targets": ({"target_prompt_logprobs": from_array(np.ones((3, 0), np.int64))}, "target_prompt_logprobs"),
    "unknown target": (targets([1], [2], [100]), "target_prompt_logprobs"),
    "target below none": (targets([1], [2], [-2]), "target_prompt_logprobs"),
    "seq_id": ({"seq_id": -1}, "seq_id"),
}


@pytest.mark.parametrize(("changes", "field"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
async def test_bad_sample_requests_name_their_field(alice: Caller, changes: dict[str, Any], field: str) -> None:
    sampling = await alice.sampling_session()
    fields = {"prompt": tokens(1, 2, 3), "sampling_params": {"max_tokens": 4}, "seq_id": 0, **changes}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.sampling.Sample(sampling_pb2.SampleRequest(sampling_session_id=sampling, **fields))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(refused.value) == [field]


async def test_a_wrong_or_missing_key_is_unauthenticated_everywhere(address: str) -> None:
    for key in (None, "tml-wrong", "", "x" * 5000):
        async with open_caller(address, key) as nobody:
            calls = [
                nobody.capabilities.GetServerCapabilities(capability_pb2.GetServerCapabilitiesRequest()),
                nobody.sessions.CreateSession(session_pb2.CreateSessionRequest()),
                nobody.training.ForwardBackward(forward_backward("s:train:0", 1)),
                nobody.sampling.Sample(sampling_pb2.SampleRequest()),
                nobody.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest()),
                nobody.operations.GetOperation(operation_pb2.GetOperationRequest(name="s:train:0:1")),
            ]
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_revoked_key_stops_working_at_once(stores: Stores, address: str) -> None:
    key, made = await stores.api_keys.create("alice", "short-lived")
    async with open_caller(address, key) as caller:
        await caller.session()
        await stores.api_keys.revoke(made.key_id)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.session()
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_keys_are_stored_hashed(stores: Stores, connection: RedisConnection) -> None:
    key, _ = await stores.api_keys.create("alice")
    assert key.startswith("tml-")
    for name in await connection.commands.keys("*"):
        assert key.encode() not in await connection.commands.dump(name)
        assert key not in name.decode()


async def test_another_tenants_things_are_not_found(alice: Caller, mallory: Caller, stores: Stores) -> None:
    run, sampling = await alice.run(), await alice.sampling_session()
    await alice.training.ForwardBackward(forward_backward(run, 1))
    session = run.partition(":")[0]
    calls = [
        mallory.training.ForwardBackward(forward_backward(run, 2)),
        mallory.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=run)),
        mallory.operations.GetOperation(operation_pb2.GetOperationRequest(name=f"{run}:1")),
        mallory.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=f"{run}:1")),
        mallory.sampling.Sample(sampling_pb2.SampleRequest(sampling_session_id=sampling, prompt=tokens(1))),
        mallory.sampling.GetSamplingSession(sampling_pb2.GetSamplingSessionRequest(sampling_session_id=sampling)),
        mallory.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session)),
        mallory.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest(training_run_id=run)),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    watch = mallory.operations.WatchOperations(operation_pb2.WatchOperationsRequest(session_id=session))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watch.read()
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert await stores.run_logs.next_seq_id(run) == 2, "nothing of mallory's reached the run"


async def test_loading_another_tenants_checkpoint_is_not_found(alice: Caller, mallory: Caller) -> None:
    theirs, mine = await alice.run(), await mallory.run()
    request = training_pb2.LoadStateRequest(training_run_id=mine, seq_id=1, path=f"tinker://{theirs}/weights/x")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mallory.training.LoadState(request)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_dead_gateways_queue_is_named_and_nothing_leaks(alice: Caller, connection: RedisConnection) -> None:
    run = await alice.run()
    await connection.commands.hset(keyspace.training_run(run), "record", b"\xff")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await alice.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=run))
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert "Traceback" not in str(failed.value.details())
