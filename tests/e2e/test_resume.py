"""A checkpoint is the whole run: going on from it, in another process, has the bits of never having stopped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from tinker_client import types

ADAM = types.AdamParams(learning_rate=1e-2, beta1=0.8, weight_decay=0.01, grad_clip_norm=2.0)
PIPELINE = ("fb", "fb", "optim", "fb") * 5
MIDDLE = 10
"""Two operations behind an optim_step: a gradient is accumulated and not applied."""

Trace = list[dict[str, float]]


@pytest.fixture(scope="module")
def other_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def datum(number: int) -> types.Datum:
    tokens = [3 + (number * 7 + offset * 5) % 80 for offset in range(4 + number % 4)]
    inputs = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
    return types.Datum(types.ModelInput.from_ints(tokens[:-1]), inputs)


def carry_out(run: tinker.TrainingClient, begin: int) -> Trace:
    """The rest of the pipeline, sent without waiting, then its state under the name `end`."""
    futures = []
    for number in range(begin, len(PIPELINE)):
        if PIPELINE[number] == "fb":
            futures.append(run.forward_backward([datum(number), datum(number + 50)], "cross_entropy"))
        else:
            futures.append(run.optim_step(ADAM))
    run.save_state("end").result(120)
    return [dict(future.result(120).metrics) for future in futures]


def resume(url: str, path: str) -> tuple[Trace, str]:
    """In a process of its own: goes on from a checkpoint; what was measured, and the new run."""
    with tinker.ServiceClient(base_url=url, api_key=API_KEY) as service:
        run = service.create_training_client_from_state_with_optimizer(path)
        return carry_out(run, MIDDLE), run.model_id


def tensors(platform: Platform, run: str, name: str) -> dict[str, torch.Tensor]:
    (directory,) = (platform.data_dir / "checkpoints" / run / "weights" / name).iterdir()
    files: list[Path] = [directory / "adapter_model.safetensors", directory / "optimizer.safetensors"]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def test_a_new_process_goes_on_amid_a_pipeline_with_the_same_bits(
    platform: Platform, service: tinker.ServiceClient, other_process: ProcessPoolExecutor
) -> None:
    run = service.create_lora_training_client(BASE_MODEL, rank=4, seed=3)
    for number in range(MIDDLE):
        if PIPELINE[number] == "fb":
            run.forward_backward([datum(number), datum(number + 50)], "cross_entropy")
        else:
            run.optim_step(ADAM)
    middle = run.save_state("middle")
    undisturbed = carry_out(run, MIDDLE)
    trace, resumed = other_process.submit(resume, platform.url, middle.result(60).path).result(120)
    assert trace == undisturbed
    before, after = tensors(platform, run.model_id, "end"), tensors(platform, resumed, "end")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    saved = tensors(platform, run.model_id, "middle")
    pending = [tensor for name, tensor in saved.items() if "/gradient." in name]
    assert any(tensor.count_nonzero() for tensor in pending), "a gradient was accumulated when it was saved"


def test_from_state_starts_with_fresh_moments_and_no_gradient(
    platform: Platform, service: tinker.ServiceClient
) -> None:
    run = service.create_lora_training_client(
        BASE_MODEL, rank=3, seed=3, alpha=9, target_modules=["q_proj", "down_proj"]
    )
    for number in (0, 1):
        run.forward_backward([datum(number)], "cross_entropy")
        run.optim_step(ADAM)
    run.forward_backward([datum(2)], "cross_entropy")
    path = run.save_state("middle", user_metadata={"why": "test"}).result(60).path
    fresh = service.create_training_client_from_state(path)
    info = fresh.get_info()
    assert (info.lora_rank, info.lora_config.alpha) == (3, 9)
    assert sorted(info.lora_config.target_modules or ()) == ["down_proj", "q_proj"]
    fresh.save_state("begin").result(60)
    begin = tensors(platform, fresh.model_id, "begin")
    assert all(not tensor.any() for name, tensor in begin.items() if name.startswith("optimizer"))
    plain = types.AdamParams(learning_rate=1e-3, eps=1e-12)
    fresh.forward_backward([datum(3)], "cross_entropy")
    fresh.save_state("pending").result(60)
    fresh.optim_step(plain)
    fresh.save_state("end").result(60)
    pending, end = tensors(platform, fresh.model_id, "pending"), tensors(platform, fresh.model_id, "end")
    for name, gradient in pending.items():
        if "/gradient." in name:
            # AdamW's first step: both moments are the gradient's, so each weight moves by the learning rate.
            weights = name.replace("optimizer.safetensors/gradient.", "adapter_model.safetensors/")
            expected = begin[weights] - plain.learning_rate * gradient.sign()
            torch.testing.assert_close(end[weights], expected, atol=1e-6, rtol=0)


def test_the_history_of_a_run_is_kept_and_a_replay_adds_nothing(
    platform: Platform, service: tinker.ServiceClient
) -> None:
    run = service.create_lora_training_client(BASE_MODEL, rank=4, seed=3)
    for number in range(3):
        run.forward_backward([datum(number)], "cross_entropy")
        run.optim_step(ADAM)
    losses = {"logprobs": [-1.0] * 3, "advantages": [1.0, -1.0, 0.5]}
    data = types.Datum(types.ModelInput.from_ints([3, 4, 5]), {"target_tokens": [4, 5, 6], **losses})
    run.forward([data], "importance_sampling").result(60)
    rest = service.create_rest_client()
    before = rest.list_training_metrics(run.model_id).result(10).training_metrics
    platform.kill("trainer")
    run.forward_backward([datum(9)], "cross_entropy").result(60)
    after = rest.list_training_metrics(run.model_id).result(10).training_metrics
    assert after[:-1] == before
    assert [entry.seq_id for entry in after] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [entry.method for entry in after] == [*["ForwardBackward", "OptimStep"] * 3, "Forward", "ForwardBackward"]
    assert [entry.step for entry in after] == [0, 1, 1, 2, 2, 3, 3, 3]
    assert [entry.tokens for entry in after] == [3, 0, 4, 0, 5, 0, 3, 4]
    assert after[0].metrics["loss:sum"] > 0
    assert after[1].metrics["learning_rate:mean"] == ADAM.learning_rate
    assert after[1].metrics["grad_norm:mean"] > 0
    assert "kl_k1:mean" in after[6].metrics, "the gap between sampler and trainer"
    assert all(entry.seconds > 0 for entry in after)


def test_what_samples_from_a_deleted_checkpoint_goes_on(
    platform: Platform, service: tinker.ServiceClient, training: tinker.TrainingClient
) -> None:
    sampling = training.save_weights_and_get_sampling_client("doomed")
    prompt, greedy = types.ModelInput.from_ints([5, 6]), types.SamplingParams(max_tokens=12, temperature=0.0, stop=[])
    under_way = [sampling.sample(prompt, 1, greedy) for _ in range(8)]
    rest = service.create_rest_client()
    path = f"tinker://{training.model_id}/sampler_weights/doomed"
    rest.delete_checkpoint_from_tinker_path(path).result(10)
    answers = [future.result(60) for future in under_way]
    platform.kill("sampler")  # the new one has to read the files again
    again = sampling.sample(prompt, 1, greedy).result(60)
    assert [answer.sequences[0].tokens for answer in answers] == [again.sequences[0].tokens] * 8
    with pytest.raises(tinker.NotFoundError):
        rest.get_checkpoint(path).result(10)
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client(model_path=path)


def test_a_run_that_has_loaded_a_deleted_checkpoint_outlives_its_trainer(
    platform: Platform, service: tinker.ServiceClient, training: tinker.TrainingClient
) -> None:
    training.forward_backward([datum(0)], "cross_entropy")
    training.optim_step(ADAM)
    path = training.save_state("source").result(60).path
    run = service.create_training_client_from_state(path)
    other = service.create_lora_training_client(BASE_MODEL, rank=4, seed=9)
    other.load_state(path).result(60)
    service.create_rest_client().delete_checkpoint_from_tinker_path(path).result(10)
    platform.kill("trainer")
    losses = [client.forward([datum(1)], "cross_entropy").result(60).metrics for client in (training, run, other)]
    assert losses[0]["loss:sum"] == losses[1]["loss:sum"] == losses[2]["loss:sum"]
