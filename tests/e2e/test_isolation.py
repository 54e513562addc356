"""Nothing of one run reaches another through the whole platform, to the last bit of what a checkpoint holds."""

from __future__ import annotations

import torch

import tinker_client as tinker
from testing.platform import BASE_MODEL, Platform
from tests.e2e.test_resume import ADAM, datum, tensors
from tinker_client import types

PROMPT = types.ModelInput.from_ints([5, 6, 7])


def train(run: tinker.TrainingClient, steps: int) -> None:
    """Some steps, and a gradient that is not applied."""
    for number in range(steps):
        run.forward_backward([datum(number), datum(number + 50)], "cross_entropy")
        run.optim_step(ADAM)
    run.forward_backward([datum(99)], "cross_entropy").result(60)


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_what_is_done_with_one_run_changes_no_other_and_no_later_one(
    platform: Platform, service: tinker.ServiceClient
) -> None:
    busy, still = (service.create_lora_training_client(BASE_MODEL, rank=4, seed=seed) for seed in (3, 4))
    busy.save_state("fresh").result(60)
    train(still, 2)
    still.save_state("before").result(60)

    old = busy.save_weights_for_sampler("old").result(60).path
    train(busy, 3)
    state = busy.save_state("state").result(60).path
    busy.load_state_with_optimizer(state).result(60)
    busy.optim_step(types.AdamParams(learning_rate=0.1, weight_decay=0.5)).result(60)
    sampling = service.create_sampling_client(model_path=old)
    params = types.SamplingParams(max_tokens=20, seed=1, stop=[])
    for _ in range(2):
        sampling.sample(PROMPT, 4, params).result(60)
        sampling.compute_logprobs(PROMPT).result(60)

    still.save_state("after").result(60)
    before = tensors(platform, still.model_id, "before")
    assert any(tensor.any() for name, tensor in before.items() if "/gradient." in name)
    assert_same_bits(before, tensors(platform, still.model_id, "after"))
    late = service.create_lora_training_client(BASE_MODEL, rank=4, seed=3)
    late.save_state("fresh").result(60)
    assert_same_bits(tensors(platform, busy.model_id, "fresh"), tensors(platform, late.model_id, "fresh"))
