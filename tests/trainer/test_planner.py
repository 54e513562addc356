"""Fairness between runs."""

from __future__ import annotations

from collections import Counter

from services.trainer.planner import plan


def test_nothing_waits() -> None:
    assert plan([], None) is None
    assert plan([], "a") is None


def test_runs_take_turns_whatever_the_order_they_are_given_in() -> None:
    chosen, previous = [], None
    for turn in range(6):
        waiting = ["b", "a", "c"] if turn % 2 else ["c", "b", "a"]
        previous = plan(waiting, previous)
        chosen.append(previous)
    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_the_run_that_went_before_may_be_gone() -> None:
    assert plan(["a", "c"], "b") == "c"
    assert plan(["a", "b"], "c") == "a"


def test_a_busy_run_does_not_starve_one_that_comes_and_goes() -> None:
    counts: Counter[str | None] = Counter()
    previous: str | None = "busy"
    for turn in range(100):
        previous = plan(["busy", "rare"] if turn % 5 == 0 else ["busy"], previous)
        counts[previous] += 1
    assert counts["rare"] == 20
