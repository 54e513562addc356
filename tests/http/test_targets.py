"""What OpenAI's client samples from: opened once, and not kept for longer than somebody may need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.core.config import Settings
from services.gateway.http.backend import Backend
from services.gateway.http.openai import targets
from services.gateway.http.openai.targets import Targets
from services.gateway.stores import Stores
from tests.gateway.caller import BASE


async def opened(stores: Stores, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Targets:
    monkeypatch.setattr(targets, "ModelText", dict)
    return Targets(Backend.open(Settings(data_dir=data_dir), stores))


async def session_of_next(at: Targets, stores: Stores) -> str:
    target = await at.of("alice", BASE)
    session = target.sampling_session_id.partition(":")[0]
    assert not (await stores.sessions.get(session, "alice")).HasField("end_time")
    return session


async def test_one_session_serves_until_its_time_is_over(
    stores: Stores, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = await opened(stores, data_dir, monkeypatch)
    first = await session_of_next(at, stores)
    assert await session_of_next(at, stores) == first
    monkeypatch.setattr(targets, "SESSION_S", 0.0)
    assert await session_of_next(at, stores) != first
    assert (await stores.sessions.get(first, "alice")).HasField("end_time"), "what it pins goes an hour later"


async def test_one_session_opens_so_many_targets(
    stores: Stores, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = await opened(stores, data_dir, monkeypatch)
    monkeypatch.setattr(targets, "MOST_TARGETS", 1)
    assert len({await session_of_next(at, stores) for _ in range(3)}) == 3
