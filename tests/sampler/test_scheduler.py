"""The next step's tokens as a pure function of the running sequences."""

from __future__ import annotations

import itertools
import random

from services.model.adapters import AdapterWeights
from services.sampler.engine.kv import Slot
from services.sampler.engine.scheduler import schedule
from services.sampler.engine.sequence import RunningSequence, SequenceGroup
from services.sampler.engine.stop import StopMatcher
from services.sampler.request import StopRule
from tests.sampler.fixtures import ask


def sequence(
    length: int,
    computed: int = 0,
    *,
    adapter: AdapterWeights | None = None,
    num_samples: int = 1,
    tenant: str = "",
) -> RunningSequence:
    scores = {"include_prompt_logprobs": True} if num_samples == 0 else {}
    group = SequenceGroup(ask("r", [1] * length, num_samples=num_samples, tenant=tenant, **scores), adapter=adapter)
    watch = StopMatcher(StopRule(), lambda _: b"")
    return RunningSequence(group, 0, Slot(0, 0), watch, [1] * length, computed)


def test_generating_sequences_come_first_and_prompts_share_the_rest() -> None:
    long, late, generating = sequence(50, 8), sequence(20), sequence(7, 6)
    chunks = schedule([long, late, generating], 30)
    assert [(chunk.sequence, chunk.start, chunk.end, chunk.draws) for chunk in chunks] == [
        (generating, 6, 7, True),
        (long, 8, 37, False),
    ]
    chunks = schedule([long, late, generating], 50)
    assert [(chunk.sequence, chunk.start, chunk.end, chunk.draws) for chunk in chunks] == [
        (generating, 6, 7, True),
        (long, 8, 50, True),
        (late, 0, 7, False),
    ]


def test_a_request_that_only_scores_leaves_its_last_token_out() -> None:
    (chunk,) = schedule([sequence(10, 4, num_samples=0)], 100)
    assert (chunk.start, chunk.end, chunk.draws) == (4, 9, False)
    assert schedule([sequence(10, 9, num_samples=0)], 100) == []
    assert schedule([sequence(1, num_samples=0)], 100) == []


def test_each_adapter_is_one_range_and_the_budget_holds() -> None:
    choose = random.Random(4)
    adapters = [None, *(object() for _ in range(4))]  # any object tells one adapter from another
    for _ in range(200):
        count = choose.randint(1, 12)
        running = []
        for _ in range(count):
            length = choose.randint(1, 30)
            computed = choose.randint(0, length - 1)
            running.append(sequence(length, computed, adapter=choose.choice(adapters)))  # type: ignore[arg-type]
        budget = choose.randint(count, 80)
        chunks = schedule(running, budget)
        assert sum(chunk.count for chunk in chunks) <= budget
        assert sum(chunk.count for chunk in chunks) == min(budget, sum(member.due for member in running))
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        seen = [id(chunk.sequence.group.adapter) for chunk in chunks]
        assert len(set(seen)) == 1 + sum(left != right for left, right in itertools.pairwise(seen))
