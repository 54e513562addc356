"""What can be returned beside tokens, against plain transformers and PEFT."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.core.errors import InvalidArgumentError
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.request import GenerationResult
from testing.rows import random_tokens
from tests.sampler.fixtures import ask, finish, make_engine, run
from tests.sampler.oracle import Oracle

Load = Callable[..., BaseModel]
Source = Callable[..., Path]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


def close(actual: object, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(actual), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_raw_and_likeliest_of_sampled_tokens_are_at_temperature_1(
    load: Load, source: Source, checkpoint: Checkpoint, temperature: float
) -> None:
    base = load()
    location, weights = checkpoint(base, 1)
    (prompt,) = random_tokens(base, [9])
    plain, asked = (
        ask(
            name,
            prompt,
            num_samples=3,
            adapter=location,
            seed=2,
            temperature=temperature,
            topk_sample_logprobs=count,
            include_raw_logprobs=count > 0,
        )
        for name, count in (("plain", 0), ("asked", 5))
    )
    without, result = run(make_engine(base), plain, asked)
    oracle = Oracle(source(), weights)
    for bare, sampled in zip(without.sequences, result.sequences, strict=True):
        assert (bare.tokens, bare.topk_logprobs, bare.raw_logprobs) == (sampled.tokens, None, None)
        close(sampled.raw_logprobs, oracle.of_tokens(prompt, sampled.tokens))
        best = oracle.log_softmax([*prompt, *sampled.tokens])[len(prompt) - 1 : -1].topk(5)
        assert sampled.topk_logprobs is not None
        assert [[token for token, _ in row] for row in sampled.topk_logprobs] == best.indices.tolist()
        close([[logprob for _, logprob in row] for row in sampled.topk_logprobs], best.values)


def test_logprobs_of_given_target_tokens(load: Load, source: Source) -> None:
    base = load()
    prompt, first, second = random_tokens(base, [70, 70, 70])
    targets = tuple(zip(first, second, strict=True))
    (result,) = run(
        make_engine(base, max_tokens_per_step=19), ask("t", prompt, num_samples=0, target_prompt_tokens=targets)
    )
    assert result.target_prompt_logprobs is not None
    assert all(map(math.isnan, result.target_prompt_logprobs[0]))
    expected = Oracle(source()).log_softmax(prompt)[:-1].gather(1, torch.tensor(targets)[1:])
    close(result.target_prompt_logprobs[1:], expected)
    assert result.prompt_logprobs is None


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_in_the_place_of_prompt_tokens_follow_the_models_distribution(
    load: Load, source: Source, temperature: float
) -> None:
    """100 draws for each of many positions: as often as the model says, and the same again alone and in chunks."""
    base = load()
    (prompt,) = random_tokens(base, [60])
    options = {"prompt_alt_tokens": 100, "temperature": temperature, "seed": 3, "max_tokens": 1}
    (result,) = run(make_engine(base, max_tokens_per_step=64), ask("t", prompt, **options))
    drawn = result.prompt_alt_tokens
    assert drawn is not None
    assert len(drawn) == 59
    model = Oracle(source()).log_softmax(prompt)[:-1]
    for row, expected in zip(drawn, model, strict=True):
        close(row.logprobs, expected[list(row.tokens)])
    tempered = (model / temperature).softmax(dim=-1)
    frequencies = torch.stack([torch.bincount(torch.tensor(row.tokens), minlength=base.vocab_size) for row in drawn])
    # Counts of tokens that are expected twice or more deviate by one standard deviation on average, by none of six.
    often = 100 * tempered >= 2
    deviations = ((frequencies - 100 * tempered) / (tempered * (1 - tempered) * 100).sqrt())[often]
    assert deviations.square().mean() == pytest.approx(1, abs=0.15)
    assert deviations.abs().max() < 6
    chunked, crowded = make_engine(base, max_tokens_per_step=19), make_engine(base, max_tokens_per_step=64)
    assert run(chunked, ask("t", prompt, **options))[0].prompt_alt_tokens is not None
    again = run(crowded, ask("t", prompt, **options), ask("u", prompt[:30], max_tokens=3))[0].prompt_alt_tokens
    assert again is not None
    assert [row.tokens for row in again] == [row.tokens for row in drawn]


def test_a_target_of_minus_one_asks_for_nothing(load: Load) -> None:
    base = load()
    (prompt,) = random_tokens(base, [40])
    targets = tuple((token, 3) for token in prompt)
    sparse = tuple((token if index % 3 else -1, 3) for index, token in enumerate(prompt))
    whole, some = (
        run(make_engine(base), ask("t", prompt, num_samples=0, target_prompt_tokens=rows))[0].target_prompt_logprobs
        for rows in (targets, sparse)
    )
    assert whole is not None
    assert some is not None
    for index in range(1, 40):
        assert some[index][1] == whole[index][1]
        assert some[index][0] == whole[index][0] if index % 3 else math.isnan(some[index][0])


@pytest.mark.parametrize("last", [1, 2, 30, 49, 50])
def test_the_last_n_prompt_tokens_are_scored_and_the_others_left_empty(load: Load, source: Source, last: int) -> None:
    base = load()
    (prompt,) = random_tokens(base, [50])
    targets = tuple((token,) for token in prompt)
    engine = make_engine(base, max_tokens_per_step=16)
    options = {"include_prompt_logprobs": True, "topk_prompt_logprobs": 2, "target_prompt_tokens": targets}
    # Twice: the second one finds the prompt in the cache.
    for index in range(2):
        (result,) = run(engine, ask(f"{index}", prompt, num_samples=2, prompt_logprobs_last_n=last, **options))
        skipped = max(50 - last, 1)
        assert result.prompt_logprobs is not None
        assert result.topk_prompt_logprobs is not None
        assert result.target_prompt_logprobs is not None
        assert all(map(math.isnan, result.prompt_logprobs[:skipped]))
        assert result.topk_prompt_logprobs[:skipped] == ((),) * skipped
        expected = Oracle(source()).prompt_logprobs(prompt)[skipped - 1 :]
        close(result.prompt_logprobs[skipped:], expected)
        close(result.target_prompt_logprobs[skipped:], expected[:, None])
        assert all(len(row) == 2 for row in result.topk_prompt_logprobs[skipped:])
        assert result.prompt_cache_hit_tokens == (index and max(50 - last - 1, 0) // 16 * 16)


def test_token_deltas_are_the_result_in_parts(load: Load) -> None:
    engine = make_engine(load(), max_sequences=3)
    engine.submit(ask("streamed", [5, 6, 7], num_samples=7, seed=3, max_tokens=9, streamed=True))
    engine.submit(ask("other", [5, 6, 7], num_samples=2, seed=3, max_tokens=9))
    parts: dict[int, list[int]] = {index: [] for index in range(7)}
    ends = {}
    outcomes = []
    while not engine.idle:
        finished = engine.step()
        for delta in engine.take_token_deltas():
            assert delta.name == "streamed"
            assert delta.start == len(parts[delta.sequence_index])
            parts[delta.sequence_index] += delta.tokens
            if delta.stop_reason is not None:
                ends[delta.sequence_index] = delta.stop_reason
        outcomes += [end.outcome for end in finished if end.name == "streamed"]
    (result,) = outcomes
    assert isinstance(result, GenerationResult)
    assert [parts[index] for index in range(7)] == [list(sampled.tokens) for sampled in result.sequences]
    assert ends == dict.fromkeys(range(7), "length")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"topk_sample_logprobs": 101}, "topk_sample_logprobs"),
        ({"prompt_logprobs_last_n": 0, "include_prompt_logprobs": True}, "prompt_logprobs_last_n"),
        ({"prompt_logprobs_last_n": 4, "include_prompt_logprobs": True}, "prompt_logprobs_last_n"),
        ({"target_prompt_tokens": ((1,), (2,))}, "target_prompt_logprobs"),
        ({"target_prompt_tokens": ((1,), (2,), (89,))}, "target_prompt_logprobs"),
        ({"target_prompt_tokens": ((1,), (2,), (3, 4))}, "target_prompt_logprobs"),
        ({"target_prompt_tokens": ((), (), ())}, "target_prompt_logprobs"),
    ],
    ids=str,
)
def test_bad_extras_are_refused_by_field(load: Load, change: dict[str, object], field: str) -> None:
    engine = make_engine(load())
    with pytest.raises(InvalidArgumentError) as caught:
        engine.submit(ask("bad", [5, 6, 7], **change))
    assert field in caught.value.violations[0].field
    assert finish(engine) == {}
