"""Slots never overlap, and what is given back is whole again."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from services.core.errors import InvalidArgumentError
from services.model.base import BaseModel
from services.sampler.engine.kv import FreeRanges, KVStore, Slot


def test_slots_are_disjoint_and_come_back_whole() -> None:
    choose = random.Random(1)
    for _ in range(50):
        ranges, taken = FreeRanges(200), []
        for _ in range(300):
            if taken and choose.random() < 0.5:
                ranges.release(taken.pop(choose.randrange(len(taken))))
            elif (slot := ranges.reserve(choose.randint(1, 60))) is not None:
                taken.append(slot)
            rows = [row for slot in taken for row in range(slot.start, slot.end)]
            assert len(rows) == len(set(rows))
            assert all(0 <= row < 200 for row in rows)
        for slot in taken:
            ranges.release(slot)
        assert ranges.reserve(200) == Slot(0, 200)


def test_no_room_is_none_and_the_first_gap_that_fits_is_taken() -> None:
    ranges = FreeRanges(10)
    first, second, third = ranges.reserve(3), ranges.reserve(3), ranges.reserve(4)
    assert (first, second, third) == (Slot(0, 3), Slot(3, 6), Slot(6, 10))
    assert ranges.reserve(1) is None
    assert second is not None
    ranges.release(second)
    assert ranges.reserve(4) is None
    assert ranges.reserve(2) == Slot(3, 5)
    assert ranges.reserve(1) == Slot(5, 6)


def test_a_model_whose_layers_keep_another_state_is_refused_by_name(load: Callable[..., BaseModel]) -> None:
    with pytest.raises(InvalidArgumentError, match="tiny-qwen3_5 has layers of the kind linear_attention") as refused:
        KVStore(load("qwen3_5"), 64)
    assert refused.value.violations[0].field == "base_model"
