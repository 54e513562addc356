"""The engine against plain transformers and PEFT: same greedy tokens, same log-probabilities, however steps are cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine import runner
from services.sampler.request import GenerationResult
from testing.rows import random_tokens
from tests.sampler.fixtures import ask, make_engine, run
from tests.sampler.oracle import Oracle

TOLERANCE = 1e-4
Load = Callable[..., BaseModel]
Source = Callable[..., Path]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


def close(actual: tuple[float, ...], expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(actual), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("qwen3", False), ("llama", True), ("llama", False)])
def test_greedy_equals_generate(load: Load, source: Source, checkpoint: Checkpoint, family: str, tied: bool) -> None:
    base = load(family, tied=tied)
    location, weights = checkpoint(base, 1)
    prompts = random_tokens(base, [1, 2, 9, 30], seed=3)
    engine = make_engine(base, max_tokens_per_step=17)
    options = {"temperature": 0.0, "max_tokens": 20}
    results = run(
        engine,
        *(ask(f"base-{index}", prompt, **options) for index, prompt in enumerate(prompts)),
        *(ask(f"adapter-{index}", prompt, adapter=location, **options) for index, prompt in enumerate(prompts)),
    )
    for oracle, part in (
        (Oracle(source(family, tied=tied)), results[:4]),
        (Oracle(source(family, tied=tied), weights), results[4:]),
    ):
        for prompt, result in zip(prompts, part, strict=True):
            (sampled,) = result.sequences
            assert list(sampled.tokens) == oracle.generate(prompt, 20)
            assert sampled.stop_reason == "length"
            close(sampled.logprobs, oracle.of_tokens(prompt, sampled.tokens))


@pytest.mark.parametrize("budget", [16, 23, 64, 1000])
def test_logprobs_equal_a_plain_forward_in_mixed_batches(
    load: Load, source: Source, checkpoint: Checkpoint, budget: int
) -> None:
    base = load(tied=False)
    kinds = [
        {"rank": 4},
        {"rank": 7, "train_unembed": False},
        {"rank": 1, "train_attn": False, "train_mlp": False},
        {"rank": 3, "train_mlp": False},
    ]
    adapters = [checkpoint(base, seed, **kind) for seed, kind in enumerate(kinds)]
    oracles = [Oracle(source(tied=False))] + [Oracle(source(tied=False), weights) for _, weights in adapters]
    locations = [None, *(location for location, _ in adapters)]
    prompts = random_tokens(base, [1, 2, 3, 15, 16, 17, 40, 60, 5, 90, 64, 31], seed=budget)
    requests = [
        ask(
            f"r{index}",
            prompt,
            num_samples=(1, 3, 0)[index % 3],
            adapter=locations[index % 5],
            temperature=(1.0, 0.6, 2.5, 0.0)[index % 4],
            top_k=(-1, 5, 0)[index % 3],
            top_p=(1.0, 0.9)[index % 2],
            seed=index,
            include_prompt_logprobs=index % 3 == 2 or index % 2 == 0,
            topk_prompt_logprobs=4 if index % 4 == 0 else 0,
        )
        for index, prompt in enumerate(prompts)
    ]
    results = run(make_engine(base, max_tokens_per_step=budget), *requests)
    for index, (request, result) in enumerate(zip(requests, results, strict=True)):
        oracle = oracles[index % 5]
        assert len(result.sequences) == request.num_samples
        for sampled in result.sequences:
            assert len(sampled.tokens) == len(sampled.logprobs) == 8
            expected = oracle.of_tokens(request.prompt, sampled.tokens, request.params.temperature or 1.0)
            close(sampled.logprobs, expected)
        assert_prompt_scores(oracle, request.prompt, result, request.include_prompt_logprobs)


def assert_prompt_scores(oracle: Oracle, prompt: tuple[int, ...], result: GenerationResult, scored: bool) -> None:
    if not scored:
        assert result.prompt_logprobs is None
    else:
        assert result.prompt_logprobs is not None
        assert math.isnan(result.prompt_logprobs[0])
        close(result.prompt_logprobs[1:], oracle.prompt_logprobs(prompt))
    if result.topk_prompt_logprobs is not None:
        assert len(result.topk_prompt_logprobs) == len(prompt)
        assert result.topk_prompt_logprobs[0] == ()
        best = oracle.log_softmax(prompt)[:-1].topk(4)
        for row, values in zip(result.topk_prompt_logprobs[1:], best.values, strict=True):
            close(tuple(logprob for _, logprob in row), values)
        ids = [[token for token, _ in row] for row in result.topk_prompt_logprobs[1:]]
        assert ids == best.indices.tolist()


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_long_prompts_are_scored_in_row_chunks(
    load: Load, source: Source, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SCORED_ROWS", rows)
    base = load()
    (prompt,) = random_tokens(base, [128])
    engine = make_engine(base, max_tokens_per_step=50)
    (result,) = run(engine, ask("score", prompt, num_samples=0, include_prompt_logprobs=True, topk_prompt_logprobs=4))
    assert_prompt_scores(Oracle(source()), tuple(prompt), result, scored=True)


def test_more_likeliest_tokens_than_the_vocabulary_are_the_vocabulary(load: Load) -> None:
    base = load()
    (result,) = run(make_engine(base), ask("score", [5, 6], num_samples=0, topk_prompt_logprobs=100))
    assert result.topk_prompt_logprobs is not None
    assert {token for token, _ in result.topk_prompt_logprobs[1]} == set(range(base.vocab_size))


def test_one_token_prompts_sample_and_score(load: Load, source: Source) -> None:
    engine = make_engine(load())
    sampled, scored = run(
        engine,
        ask("sample", [7], num_samples=3, include_prompt_logprobs=True, topk_prompt_logprobs=2),
        ask("score", [7], num_samples=0, include_prompt_logprobs=True),
    )
    assert sampled.topk_prompt_logprobs == ((),)
    for result in (sampled, scored):
        assert result.prompt_logprobs is not None
        assert len(result.prompt_logprobs) == 1
        assert math.isnan(result.prompt_logprobs[0])
    for sequence in sampled.sequences:
        close(sequence.logprobs, Oracle(source()).of_tokens([7], sequence.tokens))


def test_generated_tokens_score_the_same_when_fed_back_as_a_prompt(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    location, _ = checkpoint(base, 2)
    engine = make_engine(base, max_tokens_per_step=19)
    (prompt,) = random_tokens(base, [33])
    (result,) = run(engine, ask("sample", prompt, adapter=location, seed=4, max_tokens=40))
    (sampled,) = result.sequences
    (scored,) = run(
        engine,
        ask("score", [*prompt, *sampled.tokens], num_samples=0, adapter=location, include_prompt_logprobs=True),
    )
    assert scored.prompt_logprobs is not None
    close(sampled.logprobs, torch.tensor(scored.prompt_logprobs[len(prompt) :]))
