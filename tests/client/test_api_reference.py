"""Every snippet of the API reference, as a user would type it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import torch

import tinker_client as tinker
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL
from tinker_client import types
from tinker_client.types import EncodedTextChunk, ImageChunk, ModelInput, ParsedCheckpointTinkerPath


@pytest.fixture
def client(platform: LoopbackPlatform, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINKER_GRPC_URL", platform.url)
    monkeypatch.setenv("TINKER_BASE_URL", "http://somewhere.else")  # another SDK's: never read
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    client = tinker.ServiceClient()
    yield client
    client.close()


def datum() -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens=[1, 2, 3]),
        loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 0.0]},
    )


def test_service_client(client: tinker.ServiceClient) -> None:
    [model] = client.get_server_capabilities().supported_models
    assert (model.model_name, model.max_context_length, model.trainable) == (MODEL, 64, True)
    trained = client.create_lora_training_client(
        base_model=MODEL, rank=32, seed=None, train_mlp=True, train_attn=True, train_unembed=True
    )
    assert isinstance(trained, tinker.TrainingClient)
    assert isinstance(client.create_training_client_from_state("tinker://r/weights/a"), tinker.TrainingClient)
    assert isinstance(
        client.create_training_client_from_state_with_optimizer("tinker://r/weights/a"), tinker.TrainingClient
    )
    assert isinstance(client.create_sampling_client(model_path="tinker://r/sampler_weights/a"), tinker.SamplingClient)
    assert isinstance(client.create_sampling_client(base_model=MODEL), tinker.SamplingClient)
    assert isinstance(client.create_rest_client(), tinker.RestClient)


def test_training_client(client: tinker.ServiceClient) -> None:
    training_client = client.create_lora_training_client(MODEL)
    fwdbwd_future = training_client.forward_backward([datum()], "cross_entropy")
    optim_future = training_client.optim_step(types.AdamParams(learning_rate=1e-4))
    result = fwdbwd_future.result()
    np.testing.assert_allclose(result.loss_fn_outputs[0]["logprobs"].to_numpy(), [-0.3, -0.4, -0.5], rtol=1e-6)
    assert result.metrics["loss:sum"] == pytest.approx(0.7)
    assert optim_future.result().metrics["grad_norm:mean"] == 1e-4
    forward = training_client.forward([datum()], "cross_entropy", loss_fn_config=None).result()
    assert forward.metrics["loss:sum"] == pytest.approx(0.7)

    response = training_client.save_state("first").result()
    assert response.path == f"tinker://{training_client.model_id}/weights/first"
    assert training_client.load_state(response.path).result().path == response.path
    assert training_client.load_state_with_optimizer(response.path).result().path == response.path
    sampler = training_client.save_weights_for_sampler("s1").result()
    assert sampler.path == f"tinker://{training_client.model_id}/sampler_weights/s1"
    named = training_client.save_weights_and_get_sampling_client("s2")
    assert named.model_path == f"tinker://{training_client.model_id}/sampler_weights/s2"
    unnamed = training_client.save_weights_and_get_sampling_client()
    assert unnamed.model_path == f"tinker://{training_client.model_id}/sampler_weights/seq-9"

    info = training_client.get_info()
    assert (info.model_id, info.model_data.model_name, info.is_lora, info.lora_rank) == (
        training_client.model_id,
        MODEL,
        True,
        32,
    )


def test_sampling_client(client: tinker.ServiceClient) -> None:
    sampling_client = client.create_sampling_client(base_model=MODEL)
    prompt = types.ModelInput.from_ints([7, 8])
    params = types.SamplingParams(max_tokens=100, temperature=0.7, top_p=0.9, top_k=-1, stop=["<|endoftext|>"], seed=42)
    sample_future = sampling_client.sample(prompt, num_samples=2, sampling_params=params)
    result = sample_future.result()
    seq = result.sequences[0]
    assert (seq.tokens, seq.logprobs, seq.stop_reason) == ([7, 8, 0], [-0.5] * 3, "stop")
    assert result.sequences[1].tokens == [7, 8, 1]
    assert result.prompt_logprobs is None
    assert result.topk_prompt_logprobs is None

    scored = sampling_client.sample(prompt, 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=2).result()
    assert scored.prompt_logprobs == [None, -0.25]
    assert scored.topk_prompt_logprobs == [None, [(0, -0.5), (1, -0.5)]]
    assert sampling_client.compute_logprobs(prompt).result() == [None, -0.25]


def test_model_input() -> None:
    model_input = types.ModelInput.from_ints(tokens=[1, 2, 3])
    assert model_input.to_ints() == [1, 2, 3]
    assert model_input.length() == 3
    image = ImageChunk(data=b"png bytes", format="png", expected_tokens=5)
    multi_modal = types.ModelInput(chunks=[EncodedTextChunk(tokens=[1, 2, 3]), image])
    assert multi_modal.length() == 8
    with pytest.raises(ValueError, match="chunks: must be text"):
        multi_modal.to_ints()
    with pytest.raises(ValueError, match="expected_tokens"):
        ModelInput([types.ImageChunk(data=b"x", format="jpeg", expected_tokens=None)]).length()
    assert types.ModelInput.empty().append_int(4).append(EncodedTextChunk([5])).to_ints() == [4, 5]


def test_adam_params_have_the_documented_defaults() -> None:
    documented = types.AdamParams(
        learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0
    )
    assert types.AdamParams() == documented


def test_lora_config() -> None:
    config = types.LoraConfig(rank=32, seed=42, train_unembed=False, train_mlp=True, train_attn=True)
    assert (config.rank, config.train_unembed) == (32, False)
    assert types.LoraConfig(rank=8) == types.LoraConfig(8, None, True, True, True)


def test_tensor_data_converters() -> None:
    tensor_data = types.TensorData.from_numpy(np.array([1.5, 2.5]))
    np.testing.assert_array_equal(tensor_data.to_numpy(), np.array([1.5, 2.5], np.float32))
    tensor_data = types.TensorData.from_torch(torch.tensor([1, 2]))
    assert torch.equal(tensor_data.to_torch(), torch.tensor([1, 2]))


def test_checkpoint(client: tinker.ServiceClient) -> None:
    checkpoint = client.create_rest_client().get_checkpoint("tinker://run:train:0/weights/a").result()
    assert checkpoint.checkpoint_id == "weights/a"
    assert checkpoint.checkpoint_type == "training"
    assert checkpoint.time == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert checkpoint.tinker_path == "tinker://run:train:0/weights/a"
    assert checkpoint.size_bytes == 123
    assert checkpoint.public is False


@pytest.mark.parametrize(
    ("path", "checkpoint_type", "checkpoint_id"),
    [
        ("tinker://r:train:0/weights/a", "training", "weights/a"),
        ("tinker://r:train:0/sampler_weights/a", "sampler", "sampler_weights/a"),
        ("tinker://r:train:0/a", "training", "weights/a"),
    ],
)
def test_parsed_checkpoint_tinker_path(path: str, checkpoint_type: str, checkpoint_id: str) -> None:
    parsed = ParsedCheckpointTinkerPath.from_tinker_path(path)
    assert parsed.training_run_id == "r:train:0"
    assert parsed.checkpoint_type == checkpoint_type
    assert parsed.checkpoint_id == checkpoint_id


async def test_the_async_twins_have_the_shape_that_existing_programs_use(client: tinker.ServiceClient) -> None:
    assert (await client.get_server_capabilities_async()).supported_models
    training = await client.create_lora_training_client_async(MODEL, rank=8)
    passed = await training.forward_backward_async([datum()], "cross_entropy")
    stepped = await training.optim_step_async(types.AdamParams())
    assert isinstance(passed, tinker.APIFuture)
    assert (await passed).metrics["loss:sum"] == pytest.approx(0.7)
    assert (await stepped.result_async()).metrics
    assert (await (await training.forward_async([datum()], "cross_entropy"))).metrics
    path = (await (await training.save_state_async("a"))).path
    assert (await (await training.load_state_async(path))).path == path
    assert (await (await training.load_state_with_optimizer_async(path))).path == path
    assert (await (await training.save_weights_for_sampler_async("a"))).path
    assert (await training.get_info_async()).lora_rank == 8
    sampler = await training.save_weights_and_get_sampling_client_async()
    prompt = types.ModelInput.from_ints([1, 2])
    assert (await sampler.sample_async(prompt, 1, types.SamplingParams(max_tokens=1))).sequences
    assert await sampler.compute_logprobs_async(prompt) == [None, -0.25]
    assert isinstance(await client.create_sampling_client_async(base_model=MODEL), tinker.SamplingClient)
    assert isinstance(await client.create_training_client_from_state_async(path), tinker.TrainingClient)
    restored = await client.create_training_client_from_state_with_optimizer_async(path)
    assert isinstance(restored, tinker.TrainingClient)
