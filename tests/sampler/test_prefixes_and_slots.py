"""Cached prefixes and growing slots: what is found is right, and a store that is too small only costs time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.core.chunks import content_ids
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine import slot_allocator
from services.sampler.engine.prefix_cache import BLOCK, block_digests
from services.sampler.request import GenerationResult
from testing.rows import random_tokens
from tests.sampler.fixtures import ask, finish, make_engine, run
from tests.sampler.oracle import Oracle
from tests.sampler.test_engine_lifecycle import assert_all_is_free
from tinker_proto.v1 import data_pb2

Load = Callable[..., BaseModel]
Source = Callable[..., Path]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


def tokens_of(result: GenerationResult) -> list[tuple[int, ...]]:
    return [sampled.tokens for sampled in result.sequences]


def test_a_digest_names_the_tenant_the_adapter_and_every_token_before() -> None:
    tokens = list(range(3 * BLOCK + 5))
    digests = block_digests("", None, tokens)
    assert len(digests) == 3
    assert block_digests("", None, tokens, digests[:2]) == digests == block_digests("", None, tokens[: 3 * BLOCK])
    changed = [0 if index == 1 else token for index, token in enumerate(tokens)]
    for other in (
        block_digests("", Path("/a"), tokens),
        block_digests("", Path("/b" + "x" * 100), tokens),
        block_digests("", None, changed),
        block_digests("a", None, tokens),
    ):
        assert not set(other) & set(digests)
    assert not set(block_digests("a", Path("/b"), tokens)) & set(block_digests("a/b", None, tokens))
    long = [Path(f"/run-{run}/" + "x" * 100) for run in range(2)]
    assert not set(block_digests("", long[0], tokens)) & set(block_digests("", long[1], tokens))


def test_a_digest_names_an_image_by_its_content() -> None:
    texts = [[5] * BLOCK + image_ids(data) + [6] * BLOCK for data in (b"a", b"b", b"a")]
    first, other, same = (block_digests("", None, ids) for ids in texts)
    assert first == same
    assert first[0] == other[0]
    assert not set(first[1:]) & set(other[1:])


def image_ids(data: bytes) -> list[int]:
    chunk = data_pb2.Chunk(image=data_pb2.ImageChunk(data=data, format="png", expected_tokens=BLOCK))
    ids: list[int] = content_ids(chunk).tolist()
    return ids


@pytest.mark.long
def test_hits_give_the_same_tokens_and_logprobs(load: Load, source: Source, checkpoint: Checkpoint) -> None:
    base = load()
    adapters = [checkpoint(base, seed) for seed in range(2)]
    shared, *tails = random_tokens(base, [40, 1, 9, 20, 33], seed=1)
    engine = make_engine(base, max_tokens_per_step=24)
    hits, answers = [], {}
    for index, tail in enumerate(tails):
        for location, weights in adapters:
            prompt = [*shared, *tail]
            request = ask(f"{index}-{location}", prompt, num_samples=2, adapter=location, seed=index, max_tokens=12)
            (result,) = run(engine, request)
            hits.append(result.prompt_cache_hit_tokens)
            oracle = Oracle(source(), weights)
            for sampled in result.sequences:
                expected = oracle.of_tokens(prompt, sampled.tokens)
                torch.testing.assert_close(torch.tensor(sampled.logprobs), expected, atol=1e-4, rtol=0)
            answers[request] = tokens_of(result)
    assert hits == [0, 0, *[32] * 6], "each adapter's first request computes, the others find two blocks"
    for request, tokens in answers.items():
        assert tokens_of(run(make_engine(base), request)[0]) == tokens, "and a fresh sampler says the same"


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("share_prefixes", [False, True])
def test_a_tenant_finds_the_prompts_of_others_only_if_they_are_shared(
    load: Load, checkpoint: Checkpoint, adapted: bool, share_prefixes: bool
) -> None:
    base = load()
    adapter = checkpoint(base, 1)[0] if adapted else None
    (prompt,) = random_tokens(base, [40])
    engine = make_engine(base, share_prefixes=share_prefixes)
    hits = []
    for index, tenant in enumerate(("one", "two", "one", "two")):
        (result,) = run(engine, ask(f"r{index}", prompt, tenant=tenant, adapter=adapter))
        hits.append(result.prompt_cache_hit_tokens)
    assert hits == [0, 32 if share_prefixes else 0, 32, 32]


def test_a_tenant_does_not_find_the_prompt_of_anothers_running_request(load: Load) -> None:
    engine = make_engine(load())
    (prompt,) = random_tokens(load(), [40])
    engine.submit(ask("first", prompt, max_tokens=30, tenant="one"))
    engine.step()
    engine.submit(ask("second", prompt, max_tokens=2, tenant="two"))
    outcomes = finish(engine)
    assert isinstance(outcomes["second"], GenerationResult)
    assert outcomes["second"].prompt_cache_hit_tokens == 0


def test_a_tenant_does_not_find_the_answer_to_another(load: Load) -> None:
    engine = make_engine(load())
    (prompt,) = random_tokens(load(), [20])
    (answer,) = run(engine, ask("turn-1", prompt, max_tokens=40, tenant="one"))
    conversation = [*prompt, *answer.sequences[0].tokens, 5, 6]
    (other,) = run(engine, ask("other", conversation, tenant="two"))
    (turn_2,) = run(engine, ask("turn-2", conversation, tenant="one"))
    assert (other.prompt_cache_hit_tokens, turn_2.prompt_cache_hit_tokens) == (0, 48)


def test_samples_of_one_request_share_its_prompt(load: Load) -> None:
    (prompt,) = random_tokens(load(), [40])
    engine = make_engine(load(), max_tokens_per_step=40)
    engine.submit(ask("r", prompt, num_samples=4, max_tokens=8, tenant="one", streamed=True))
    for _ in range(3):
        engine.step()
    lengths = dict.fromkeys(range(4), 0)
    for delta in engine.take_token_deltas():
        lengths[delta.sequence_index] = delta.start + len(delta.tokens)
    assert set(lengths.values()) == {3}, "a prompt of 40 fills a step: without sharing the other samples would wait"
    finish(engine)


def test_an_answer_is_found_by_the_next_turn(load: Load) -> None:
    engine = make_engine(load())
    (prompt,) = random_tokens(load(), [20])
    (answer,) = run(engine, ask("turn-1", prompt, max_tokens=40))
    (turn_2,) = run(engine, ask("turn-2", [*prompt, *answer.sequences[0].tokens, 5, 6]))
    assert turn_2.prompt_cache_hit_tokens == 48, "59 tokens were computed: three whole blocks"


def test_a_prompt_is_found_while_its_first_request_still_runs(load: Load) -> None:
    engine = make_engine(load())
    (prompt,) = random_tokens(load(), [40])
    engine.submit(ask("first", prompt, max_tokens=30))
    engine.step()
    engine.submit(ask("second", prompt, max_tokens=2))
    outcomes = finish(engine)
    assert isinstance(outcomes["second"], GenerationResult)
    assert outcomes["second"].prompt_cache_hit_tokens == 32


@pytest.mark.long
@pytest.mark.parametrize("growth", [1, 7, 64])
def test_a_store_too_small_for_all_changes_no_token(
    load: Load, checkpoint: Checkpoint, growth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences grow, move, and are preempted and computed again; the answers are those of a large store."""
    base = load()
    locations = [None, checkpoint(base, 1)[0]]
    prompts = random_tokens(base, [3, 30, 17, 50, 8, 33, 21, 60], seed=2)
    requests = [
        ask(
            f"r{index}",
            prompt,
            num_samples=1 + index % 3,
            adapter=locations[index % 2],
            seed=index,
            max_tokens=128 - len(prompt),
            include_prompt_logprobs=True,
            streamed=True,
        )
        for index, prompt in enumerate(prompts)
    ]
    expected = run(make_engine(base, max_cached_tokens=8192), *requests)
    monkeypatch.setattr(slot_allocator, "LEAST_GROWTH", growth)
    engine = make_engine(base, max_cached_tokens=300, max_tokens_per_step=40)
    actual = run(engine, *requests)
    assert engine.inspection.preemptions > 0, "the store was too small"
    for one, other in zip(expected, actual, strict=True):
        assert tokens_of(one) == tokens_of(other)
        assert one.prompt_logprobs is not None
        assert other.prompt_logprobs is not None
        scores = torch.tensor(one.prompt_logprobs[1:]), torch.tensor(other.prompt_logprobs[1:])
        torch.testing.assert_close(*scores, atol=2e-5, rtol=0)
    assert_all_is_free(engine)


@pytest.mark.long
def test_requests_without_a_limit_do_not_starve_each_other(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests that could fill the context run side by side in a store of one and a half contexts."""
    monkeypatch.setattr(slot_allocator, "LEAST_GROWTH", 16)
    engine = make_engine(load(), max_cached_tokens=192)
    for index in range(4):
        engine.submit(ask(f"r{index}", [5, 6], max_tokens=126, seed=index))
    engine.step()
    assert engine.running_sequences == 4
    assert len(finish(engine)) == 4


@pytest.mark.long
def test_random_traffic_leaves_the_store_whole(
    load: Load, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_allocator, "LEAST_GROWTH", 5)
    base = load()
    locations = [None, checkpoint(base, 1)[0]]
    shared = random_tokens(base, [50], seed=4)[0]
    choose = random.Random(5)
    engine = make_engine(base, max_cached_tokens=400, max_tokens_per_step=48)
    for index in range(60):
        prompt = [*shared[: choose.randint(1, 50)], *(choose.randint(3, 88) for _ in range(choose.randint(0, 30)))]
        engine.submit(
            ask(
                f"r{index}",
                prompt,
                num_samples=choose.choice([1, 1, 2, 5]),
                max_tokens=choose.randint(1, 128 - len(prompt)),
                adapter=choose.choice(locations),
                seed=index,
            )
        )
        for _ in range(choose.randint(0, 3)):
            engine.step()
        if choose.random() < 0.2:
            engine.cancel(f"r{choose.randint(0, index)}")
    finish(engine, max_steps=20_000)
    assert_all_is_free(engine)
