"""The main job through real services: train a LoRA, save, sample, load, resume."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinker_client as tinker
from testing.platform import BASE_MODEL
from tinker_client import types

DATA = [
    types.Datum(
        model_input=types.ModelInput.from_ints(tokens=[5, 6, 7, 8, 9, 10 + i]),
        loss_fn_inputs={"target_tokens": [6, 7, 8, 9, 10 + i, 11], "weights": [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]},
    )
    for i in range(3)
]
ADAM = types.AdamParams(learning_rate=1e-2)


def test_the_loss_falls_and_the_result_has_a_logprob_for_every_target(training: tinker.TrainingClient) -> None:
    losses = []
    for _ in range(8):
        forward_backward = training.forward_backward(DATA, "cross_entropy")
        optim = training.optim_step(ADAM)
        output = forward_backward.result()
        assert optim.result().metrics["grad_norm:mean"] > 0
        losses.append(output.metrics["loss:sum"])
    assert losses[-1] < 0.5 * losses[0]
    logprobs = [entry["logprobs"].to_numpy() for entry in output.loss_fn_outputs]
    assert [array.shape for array in logprobs] == [(6,)] * 3
    weights = np.array([0, 1, 1, 1, 1, 1], dtype=np.float32)
    assert output.metrics["loss:sum"] == pytest.approx(-sum(float(array @ weights) for array in logprobs), rel=1e-5)


def test_sampling_from_a_checkpoint_gives_what_was_trained(
    service: tinker.ServiceClient, training: tinker.TrainingClient
) -> None:
    for _ in range(30):
        training.forward_backward(DATA[:1], "cross_entropy")
        training.optim_step(ADAM)
    sampling = training.save_weights_and_get_sampling_client("trained")
    prompt = types.ModelInput.from_ints(tokens=[5, 6, 7])
    greedy = types.SamplingParams(max_tokens=3, temperature=0.0, stop=[])
    sampled = sampling.sample(prompt, num_samples=2, sampling_params=greedy, include_prompt_logprobs=True).result()
    assert [sequence.tokens for sequence in sampled.sequences] == [[8, 9, 10]] * 2
    assert sampled.sequences[0].stop_reason == "length"
    assert sampled.prompt_logprobs is not None
    assert sampled.prompt_logprobs[0] is None
    base = service.create_sampling_client(base_model=BASE_MODEL)
    untrained = base.sample(prompt, num_samples=1, sampling_params=greedy).result()
    assert untrained.sequences[0].tokens != [8, 9, 10]


def test_sampler_and_trainer_agree_on_logprobs(training: tinker.TrainingClient) -> None:
    for _ in range(3):
        training.forward_backward(DATA, "cross_entropy")
        training.optim_step(ADAM)
    trained = training.forward(DATA[:1], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    sampling = training.save_weights_and_get_sampling_client("agree")
    tokens = [5, 6, 7, 8, 9, 10, 11]
    scored = sampling.compute_logprobs(types.ModelInput.from_ints(tokens=tokens)).result()
    assert scored[0] is None
    np.testing.assert_allclose(np.array(scored[1:], dtype=np.float64), trained, atol=1e-4)


def test_a_checkpoint_resumes_with_and_without_its_optimizer(
    service: tinker.ServiceClient, training: tinker.TrainingClient
) -> None:
    training.forward_backward(DATA, "cross_entropy")
    training.optim_step(ADAM)
    training.forward_backward(DATA[:1], "cross_entropy")
    path = training.save_state("middle").result().path
    assert path == f"tinker://{training.model_id}/weights/middle"

    def go_on(client: tinker.TrainingClient) -> float:
        client.forward_backward(DATA[1:], "cross_entropy")
        client.optim_step(ADAM)
        return client.forward(DATA, "cross_entropy").result().metrics["loss:sum"]

    without_stopping = go_on(training)
    resumed = service.create_training_client_from_state_with_optimizer(path)
    assert resumed.get_info().lora_rank == 4
    assert go_on(resumed) == without_stopping
    assert go_on(service.create_training_client_from_state(path)) != without_stopping
    training.load_state_with_optimizer(path).result()
    assert go_on(training) == without_stopping


def test_importance_sampling_raises_what_is_rewarded(training: tinker.TrainingClient) -> None:
    tokens, targets = [5, 6, 7, 8], [6, 7, 8, 9]

    def logprobs() -> np.ndarray:
        datum = types.Datum(types.ModelInput.from_ints(tokens=tokens), {"target_tokens": targets})
        return training.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()

    before = logprobs()
    for _ in range(5):
        inputs = {"target_tokens": targets, "logprobs": logprobs(), "advantages": [0.0, 0.0, 1.0, -1.0]}
        datum = types.Datum(types.ModelInput.from_ints(tokens=tokens), inputs)
        training.forward_backward([datum], "importance_sampling")
        training.optim_step(ADAM).result()
    after = logprobs()
    assert after[2] > before[2]
    assert after[3] < before[3]


def test_one_seed_gives_one_answer_and_several_samples_differ(service: tinker.ServiceClient) -> None:
    sampling = service.create_sampling_client(base_model=BASE_MODEL)
    prompt = types.ModelInput.from_ints(tokens=[5, 6, 7])
    params = types.SamplingParams(max_tokens=12, seed=42, stop=[])
    first = sampling.sample(prompt, num_samples=4, sampling_params=params).result()
    again = sampling.sample(prompt, num_samples=4, sampling_params=params).result()
    assert [s.tokens for s in first.sequences] == [s.tokens for s in again.sequences]
    assert len({tuple(s.tokens) for s in first.sequences}) > 1
    assert all(math.isfinite(logprob) for s in first.sequences for logprob in s.logprobs)


def test_pipelined_pairs_run_in_order_and_arrive(training: tinker.TrainingClient) -> None:
    pairs = [
        (training.forward_backward(DATA, "cross_entropy"), training.optim_step(types.AdamParams(learning_rate=1e-3)))
        for _ in range(50)
    ]
    losses = [forward_backward.result().metrics["loss:sum"] for forward_backward, _ in pairs]
    assert losses == sorted(losses, reverse=True), "each step improves on the one before only if the order holds"
    assert all(optim.result().metrics["grad_norm:mean"] > 0 for _, optim in pairs)
