"""What else is in the batch changes nothing: seeds, neighbours' NaN, waiting, shared prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.core.errors import FailedPreconditionError
from services.model.adapter_files import WEIGHTS_FILE
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.request import GenerationRequest, GenerationResult
from testing.rows import random_tokens
from tests.sampler.fixtures import ask, finish, make_engine, run

Load = Callable[..., BaseModel]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


@pytest.fixture
def sixteen(load: Load, checkpoint: Checkpoint) -> tuple[BaseModel, list[GenerationRequest]]:
    base = load()
    locations = [None, *(checkpoint(base, seed)[0] for seed in range(3))]
    prompts = random_tokens(base, range(3, 67, 4), seed=9)
    requests = [
        ask(
            f"r{index}",
            prompt,
            adapter=locations[index % 4],
            max_tokens=20,
            seed=100 + index,
            temperature=0.5 + index % 3,
            top_k=(-1, 30)[index % 2],
            top_p=(1.0, 0.95)[index // 2 % 2],
        )
        for index, prompt in enumerate(prompts)
    ]
    return base, requests


def tokens_of(result: GenerationResult) -> list[tuple[int, ...]]:
    return [sampled.tokens for sampled in result.sequences]


@pytest.mark.long
def test_a_seeded_request_is_the_same_alone_and_in_a_batch(
    sixteen: tuple[BaseModel, list[GenerationRequest]],
) -> None:
    base, requests = sixteen
    engine = make_engine(base, max_tokens_per_step=40)
    together = run(engine, *requests)
    reversed_order = run(engine, *reversed(requests))[::-1]
    for request, one, other in zip(requests, together, reversed_order, strict=True):
        (alone,) = run(engine, request)
        assert tokens_of(alone) == tokens_of(one) == tokens_of(other)
        for result in (one, other):
            difference = torch.tensor(alone.sequences[0].logprobs) - torch.tensor(result.sequences[0].logprobs)
            assert difference.abs().max() < 2e-5


@pytest.mark.long
def test_a_seeded_request_is_the_same_alone_and_among_32_with_8_adapters(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    locations = [checkpoint(base, seed)[0] for seed in range(8)]
    prompts = random_tokens(base, range(3, 99, 3), seed=11)
    requests = [
        ask(f"r{index}", prompt, adapter=locations[index % 8], max_tokens=12, seed=index)
        for index, prompt in enumerate(prompts)
    ]
    together = run(make_engine(base, max_sequences=32, max_cached_tokens=8192), *requests)
    restarted = make_engine(base)
    for request, result in zip(requests, together, strict=True):
        assert tokens_of(run(restarted, request)[0]) == tokens_of(result)


@pytest.mark.long
def test_the_deterministic_mode_gives_the_same_bits_alone_and_in_any_batch(
    sixteen: tuple[BaseModel, list[GenerationRequest]],
) -> None:
    base, requests = sixteen
    longer = random_tokens(base, [100, 80, 65, 64, 63], seed=5)
    requests = [
        *(
            dataclasses.replace(request, include_prompt_logprobs=True, num_samples=1 + i % 2)
            for i, request in enumerate(requests)
        ),
        *(
            ask(f"long-{i}", prompt, adapter=requests[i].adapter, seed=i, max_tokens=20)
            for i, prompt in enumerate(longer)
        ),
    ]
    together = run(make_engine(base, deterministic=True, max_sequences=40), *requests)
    engine = make_engine(base, deterministic=True, max_tokens_per_step=40)
    other = run(engine, *reversed(requests))[::-1]
    for request, one, two in zip(requests, together, other, strict=True):
        (alone,) = run(engine, request)
        assert bits(alone) == bits(one) == bits(two)


def bits(result: GenerationResult) -> str:
    """Every number to its last bit; NaN equals itself."""
    return repr(result)


@pytest.mark.long
def test_limits_of_the_engine_do_not_change_a_result(sixteen: tuple[BaseModel, list[GenerationRequest]]) -> None:
    base, requests = sixteen
    requests = [dataclasses.replace(request, num_samples=3) for request in requests[::3]]
    expected = run(make_engine(base, max_sequences=64, max_tokens_per_step=4096, max_cached_tokens=8192), *requests)
    for limits in (
        {"max_sequences": 1, "max_tokens_per_step": 1, "max_cached_tokens": 128, "max_adapters": 1},
        {"max_sequences": 5, "max_tokens_per_step": 11, "max_cached_tokens": 200, "max_adapters": 2},
    ):
        engine = make_engine(base, **limits)
        actual = run(engine, *requests)
        assert [tokens_of(result) for result in actual] == [tokens_of(result) for result in expected]


def test_samples_of_a_request_differ_and_each_is_a_function_of_its_index(load: Load) -> None:
    engine = make_engine(load())
    (prompt,) = random_tokens(load(), [12])
    (eight,) = run(engine, ask("eight", prompt, num_samples=8, seed=1))
    (three,) = run(engine, ask("three", prompt, num_samples=3, seed=1))
    (other,) = run(engine, ask("other", prompt, num_samples=3, seed=2))
    assert len(set(tokens_of(eight))) == 8
    assert tokens_of(three) == tokens_of(eight)[:3]
    assert not set(tokens_of(other)) & set(tokens_of(eight))


def test_the_first_token_of_many_samples_follows_the_model(load: Load) -> None:
    """Copies of the prompt, sequences that inherit a slot, and the one that prefilled draw from one distribution."""
    base = load()
    engine = make_engine(base, max_sequences=7)
    (result,) = run(engine, ask("many", [5, 9, 11], num_samples=1000, max_tokens=1, seed=3))
    (scored,) = run(engine, ask("score", [5, 9, 11, 3], num_samples=0, topk_prompt_logprobs=100))
    assert scored.topk_prompt_logprobs is not None
    probabilities = {token: 2.718281828**logprob for token, logprob in scored.topk_prompt_logprobs[3]}
    counts = dict.fromkeys(probabilities, 0)
    for (token,) in tokens_of(result):
        counts[token] += 1
    for token, probability in probabilities.items():
        assert abs(counts[token] - 1000 * probability) < 5 * (1000 * probability) ** 0.5 + 2


@pytest.mark.parametrize("slots", [8, 3])
def test_samples_share_one_prefill_and_its_draw(load: Load, slots: int) -> None:
    base = load()
    engine = make_engine(base, max_sequences=slots, max_tokens_per_step=64)
    fed: list[int] = []
    trunk = base.module.base_model
    hook = trunk.register_forward_pre_hook(
        lambda _, __, inputs: fed.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    (prompt,) = random_tokens(base, [50])
    (long,) = run(engine, ask("long", prompt, num_samples=8, max_tokens=4))
    assert sum(fed) == 50 + 8 * 3, "the prompt once, and three fed-back tokens for each"
    fed.clear()
    engine.forget_cached_prefixes()
    (short,) = run(engine, ask("short", prompt, num_samples=8, max_tokens=1))
    hook.remove()
    assert fed == [50], "one step for all of them, however few slots there are"
    assert tokens_of(short) == [tokens[:1] for tokens in tokens_of(long)]


def test_a_request_alone_computes_its_own_tokens_and_no_empty_slot(load: Load) -> None:
    base = load()
    engine = make_engine(base, max_sequences=64)
    (prompt,) = random_tokens(base, [50])
    fed, scored = [], []
    hooks = [
        base.module.base_model.register_forward_pre_hook(
            lambda _, __, inputs: fed.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
        ),
        base.module.lm_head.register_forward_pre_hook(lambda _, inputs: scored.append(inputs[0].shape[:-1].numel())),
    ]
    run(engine, ask("alone", prompt, max_tokens=4))
    for hook in hooks:
        hook.remove()
    assert fed == [(1, 50), (1, 1), (1, 1), (1, 1)]
    assert scored == [1] * 4


def test_an_adapter_of_nan_fails_alone_and_changes_no_bit_of_others(
    sixteen: tuple[BaseModel, list[GenerationRequest]], checkpoint: Checkpoint
) -> None:
    base, requests = sixteen
    location, _ = checkpoint(base, 77)
    healthy = [request for request in requests if request.adapter is not None][:5]
    # It ends with the first step, healthy or not, so that all steps have the same tokens in them.
    sick = ask("sick", range(3, 50), adapter=location, num_samples=0, include_prompt_logprobs=True)

    def outcomes(poison: float) -> dict[str, object]:
        tensors = load_file(location / WEIGHTS_FILE)
        name = next(name for name in tensors if "layers.0" in name and "v_proj.lora_B" in name)
        tensors[name].view(-1)[0] = poison
        save_file(tensors, location / WEIGHTS_FILE, metadata={"format": "pt"})
        engine = make_engine(base, max_tokens_per_step=1000)
        for request in (healthy[0], sick, *healthy[1:]):
            engine.submit(request)
        return finish(engine)

    well, ill = outcomes(0.01), outcomes(float("nan"))
    assert isinstance(well["sick"], GenerationResult)
    error = ill.pop("sick")
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == "NON_FINITE_LOGITS"
    assert "adapter-77" in error.message
    assert all(ill[name] == well[name] for name in ill)


def test_rows_that_held_nan_do_not_infect_their_next_owner(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    engine = make_engine(base, max_sequences=1)
    (clean,) = run(engine, ask("clean", [5, 6, 7], seed=1))
    store = engine.inspection.kv_store
    for stored in (store.keys_L1GRD, store.values_L1GRD):
        stored.fill_(float("nan"))
    (again,) = run(engine, ask("again", [5, 6, 7], seed=1))
    assert again == clean
