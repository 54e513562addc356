"""Rounding upwards, against a search."""

from __future__ import annotations

from itertools import count

from services.model.rounding import ceil_div, next_power_of_two, round_up


def test_each_rounds_up_to_the_smallest_that_is_enough() -> None:
    for number in range(1, 70):
        assert next_power_of_two(number) == next(2**n for n in count() if 2**n >= number)
        for step in range(1, 12):
            assert ceil_div(number, step) == next(n for n in count() if n * step >= number)
            assert round_up(number, step) == next(n * step for n in count() if n * step >= number)
