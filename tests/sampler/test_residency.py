"""Adapters stay loaded up to the limit; the least recently used is dropped first, one in use never."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.core.errors import DataLossError
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine.residency import Residency
from tests.sampler.fixtures import ask, make_engine, run

Load = Callable[..., BaseModel]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


def test_the_least_recently_used_adapter_goes_first_and_can_come_back(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    locations = [checkpoint(base, seed)[0] for seed in range(3)]
    residency = Residency(base, 2)
    first = residency.acquire(locations[0])
    assert first is not None
    residency.release(locations[0])
    for location in (locations[1], locations[0]):
        residency.acquire(location)
        residency.release(location)
    assert residency.acquire(locations[0]) is first  # still loaded
    residency.release(locations[0])
    residency.acquire(locations[2])
    assert residency.locations == (locations[0], locations[2])
    residency.acquire(locations[1])
    assert residency.locations == (locations[2], locations[1])
    residency.release(locations[2])
    again = residency.acquire(locations[0])
    assert again is not None
    assert again is not first
    assert torch.equal(again.flat, first.flat)


def test_adapters_in_use_stay_and_others_wait(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    (one, _), (two, _) = checkpoint(base, 1), checkpoint(base, 2)
    residency = Residency(base, 1)
    residency.acquire(one)
    residency.acquire(one)
    residency.release(one)
    assert residency.acquire(two) is None
    residency.release(one)
    assert residency.acquire(two) is not None
    assert residency.locations == (two,)


def test_an_adapter_that_cannot_be_read_takes_no_place(load: Load, checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = load()
    residency = Residency(base, 1)
    with pytest.raises(DataLossError):
        residency.acquire(tmp_path / "absent")
    assert residency.locations == ()
    assert residency.acquire(checkpoint(base, 1)[0]) is not None


def test_an_adapter_that_was_read_ahead_is_not_read_again(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    written = [checkpoint(base, seed) for seed in range(3)]
    residency = Residency(base, 2)
    for location, _ in written:
        residency.read_ahead(location)
    assert residency.locations == ()
    for location, _ in written:
        shutil.rmtree(location)
    with pytest.raises(DataLossError):
        residency.acquire(written[0][0])  # as many are kept as can be loaded
    for location, weights in written[1:]:
        found = residency.acquire(location)
        assert found is not None
        assert torch.equal(found.flat, weights.flat)
        residency.read_ahead(location)  # it is here
        residency.release(location)


def test_more_adapters_than_fit_are_served_in_turn(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    locations = [checkpoint(base, seed)[0] for seed in range(4)]
    requests = [
        ask(f"{turn}-{seed}", [5, 6], adapter=locations[seed], seed=seed) for turn in range(2) for seed in range(4)
    ]
    roomy, tight = (run(make_engine(base, max_adapters=limit), *requests) for limit in (4, 1))
    assert [result.sequences[0].tokens for result in roomy] == [result.sequences[0].tokens for result in tight]
    assert len({result.sequences[0].tokens for result in roomy}) == 4
