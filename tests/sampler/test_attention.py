"""Spans of one length at even distances are attended in one call, and nothing else is; the result is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from services.model.base import BaseModel
from services.sampler.engine import packed_forward
from services.sampler.engine.attention import Span, join_spans
from tests.sampler.fixtures import ask, make_engine, run

Load = Callable[..., BaseModel]


def one(start: int, slot_start: int, rows: int) -> Span:
    return Span(start, start + 1, slot_start, slot_start + rows)


def test_only_single_tokens_of_one_length_at_even_distances_are_joined() -> None:
    even = [one(index, 300 * index, 40) for index in range(3)]
    uneven, longer, chunk = one(3, 1000, 40), one(4, 1300, 41), Span(5, 9, 2000, 2040)
    backwards = one(9, 1600, 40)
    joined = list(join_spans([*even, uneven, longer, chunk, backwards]))
    assert joined == [Span(0, 3, 0, 40, slots=3, stride=300), uneven, longer, chunk, backwards]
    assert list(join_spans([])) == []


def test_samples_attend_together_as_they_do_apart(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load()
    request = ask("group", range(3, 43), num_samples=8, seed=4, max_tokens=12)
    joined: list[int] = []

    def recorded(spans: tuple[Span, ...]) -> list[Span]:
        found = list(join_spans(spans))
        joined.extend(span.slots for span in found)
        return found

    monkeypatch.setattr(packed_forward, "join_spans", recorded)
    (together,) = run(make_engine(base), request)
    assert max(joined) >= 7
    monkeypatch.setattr(packed_forward, "join_spans", lambda spans: spans)
    (apart,) = run(make_engine(base), request)
    for one_way, other in zip(together.sequences, apart.sequences, strict=True):
        assert one_way.tokens == other.tokens
        torch.testing.assert_close(torch.tensor(one_way.logprobs), torch.tensor(other.logprobs), atol=1e-5, rtol=0)
