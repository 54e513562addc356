"""One tenant's work never keeps another's waiting: turns at the granularity of a sequence, counted in engine steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.engine.scheduler import schedule
from services.sampler.request import GenerationRequest, GenerationResult, StopRule
from testing.rows import random_tokens
from tests.sampler.fixtures import ask, finish, make_engine, run
from tests.sampler.test_scheduler import sequence

Load = Callable[..., BaseModel]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]
FEW = 3
"""Steps that a newcomer waits at most, before those that its own tokens take."""


def flood(name: str = "flood", *, prompt: int = 3, **options: object) -> GenerationRequest:
    options = {"num_samples": 64, "max_tokens": 60, "seed": 4, "tenant": "mallory", **options}
    return ask(name, range(5, 5 + prompt), stop=StopRule(), **options)  # type: ignore[arg-type]


def newcomer(name: str = "newcomer", **options: object) -> GenerationRequest:
    options = {"max_tokens": 5, "seed": 1, "tenant": "alice", **options}
    return ask(name, [7, 8], stop=StopRule(), **options)  # type: ignore[arg-type]


def steps_until(engine: NativeSamplerEngine, name: str, most: int) -> dict[str, object]:
    """Outcomes of at most so many steps; `name` has ended by then."""
    outcomes: dict[str, object] = {}
    for _ in range(most):
        outcomes |= {finished.name: finished.outcome for finished in engine.step()}
        if name in outcomes:
            return outcomes
    raise AssertionError(f"{name} has not ended after {most} steps")


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_newcomer_is_served_at_once_and_nobody_gets_another_token(load: Load, deterministic: bool) -> None:
    base = load()
    heavy = flood(num_samples=24, max_tokens=40)
    alone = [run(make_engine(base, deterministic=deterministic), request)[0] for request in (heavy, newcomer())]
    engine = make_engine(base, max_sequences=4, deterministic=deterministic)
    engine.submit(heavy)
    for _ in range(10):
        engine.step()
    assert engine.running_sequences == 4
    engine.submit(newcomer())
    outcomes = steps_until(engine, "newcomer", 5 + FEW)
    assert engine.inspection.preemptions == 1
    outcomes |= finish(engine)
    for expected, request in zip(alone, (heavy, newcomer()), strict=True):
        result = outcomes[request.name]
        assert isinstance(result, GenerationResult)
        assert [sampled.tokens for sampled in result.sequences] == [sampled.tokens for sampled in expected.sequences]
        assert not deterministic or result.sequences == expected.sequences, "to the last bit"


def test_two_tenants_share_the_places_and_a_third_gets_its_part(load: Load) -> None:
    engine = make_engine(load(), max_sequences=6)
    for tenant, expected in (("a", [6]), ("b", [3, 3]), ("c", [2, 2, 2])):
        engine.submit(flood(tenant, tenant=tenant, streamed=True))
        for _ in range(4):
            engine.step()
        engine.take_token_deltas()
        engine.step()
        advanced = [delta.name for delta in engine.take_token_deltas()]
        assert sorted(map(advanced.count, set(advanced))) == expected


def test_rows_of_the_store_are_given_up_too(load: Load) -> None:
    engine = make_engine(load(), max_cached_tokens=128)
    engine.submit(flood(num_samples=2, prompt=20, max_tokens=100))
    for _ in range(45):
        engine.step()
    engine.submit(newcomer(max_tokens=30))
    outcomes = steps_until(engine, "newcomer", 30 + FEW)
    assert set(outcomes | finish(engine)) == {"newcomer", "flood"}


def test_a_place_on_the_device_for_an_adapter_is_given_up_too(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    adapters = [checkpoint(base, seed)[0] for seed in range(3)]
    engine = make_engine(base, max_adapters=2)
    for index in range(2):
        engine.submit(flood(f"flood-{index}", num_samples=2, adapter=adapters[index], max_tokens=50))
    for _ in range(10):
        engine.step()
    asked = newcomer(adapter=adapters[2])
    engine.submit(asked)
    outcomes = steps_until(engine, "newcomer", 5 + FEW)
    (result,), (alone,) = [outcomes["newcomer"]], run(make_engine(base), asked)
    assert isinstance(result, GenerationResult)
    assert result.sequences[0].tokens == alone.sequences[0].tokens
    assert set(finish(engine)) == {"flood-0", "flood-1"}


def test_more_tenants_than_places_go_on_by_turns(load: Load) -> None:
    engine = make_engine(load(), max_sequences=2)
    names = [f"t{index}" for index in range(5)]
    for name in names:
        engine.submit(newcomer(name, tenant=name, max_tokens=100, streamed=True))
    seen: dict[str, int] = {}
    for step in range(120):
        engine.step()
        for delta in engine.take_token_deltas():
            seen.setdefault(delta.name, step)
    assert set(seen) == set(names), "everybody has begun before anybody is done"
    assert set(finish(engine)) == set(names)


def test_a_small_request_does_not_wait_for_a_large_one_of_its_own_tenant(load: Load) -> None:
    engine = make_engine(load(), max_sequences=8)
    engine.submit(flood())
    for _ in range(5):
        engine.step()
    engine.submit(newcomer(tenant="mallory"))
    steps_until(engine, "newcomer", 5 + FEW)


def test_long_prompts_of_one_tenant_leave_half_of_a_step_to_another(load: Load) -> None:
    long = [sequence(100) for _ in range(3)]
    short = sequence(20, tenant="alice")
    chunks = {id(chunk.sequence): chunk.count for chunk in schedule([*long, short], 30)}
    assert chunks == {id(long[0]): 15, id(short): 15}
    chunks = {id(chunk.sequence): chunk.count for chunk in schedule([*long, sequence(4, tenant="alice")], 30)}
    assert sorted(chunks.values()) == [4, 26], "what one does not need is the others'"

    base = load()
    engine = make_engine(base, max_tokens_per_step=16)
    for index, prompt in enumerate(random_tokens(base, [100] * 6)):
        engine.submit(ask(f"long-{index}", prompt, max_tokens=1, tenant="mallory"))
    engine.step()
    engine.submit(newcomer(max_tokens=1))
    steps_until(engine, "newcomer", FEW)


def test_every_request_ends_however_small_the_engine(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    adapters = [None, *(checkpoint(base, seed)[0] for seed in range(2))]
    prompts = random_tokens(base, range(2, 92, 9), seed=3)
    requests = [
        ask(
            f"r{index}",
            prompt,
            tenant=f"t{index % 4}",
            num_samples=index % 4,
            adapter=adapters[index % 3],
            max_tokens=30 if index % 4 else 0,
            include_prompt_logprobs=True,
            seed=index,
        )
        for index, prompt in enumerate(prompts)
    ]
    expected = [run(make_engine(base), request)[0] for request in requests]
    limits = {"max_sequences": 3, "max_tokens_per_step": 7, "max_cached_tokens": 160, "max_adapters": 1}
    results = run(make_engine(base, **limits), *requests)
    for one, other in zip(expected, results, strict=True):
        assert [sampled.tokens for sampled in one.sequences] == [sampled.tokens for sampled in other.sequences]
        assert one.prompt_logprobs is not None
        assert other.prompt_logprobs == pytest.approx(one.prompt_logprobs, abs=1e-4, nan_ok=True)
