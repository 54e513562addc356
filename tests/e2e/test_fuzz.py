"""The short form of `make fuzz`."""

from __future__ import annotations

from testing.platform import Platform
from tests.fuzz.fuzz import run_trial
from tests.fuzz.requests import methods


async def test_hostile_bytes_harm_neither_the_platform_nor_other_tenants(platform: Platform) -> None:
    trial = await run_trial(platform, requests=400, seed=3, report=print)
    assert not trial.faults, trial.summary()
    assert trial.rounds > 0
    assert len(trial.by_method) == len(methods())
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= trial.codes.keys()
