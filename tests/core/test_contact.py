"""Who takes over the work of a silent worker: nobody who was cut off itself, and nobody after an outage."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from services.core import contact
from services.core.connection import RedisConnection
from services.core.contact import Contact

LEASE_S = 9.0


class Server:
    """Time as the test lets it pass, and a server that tells it."""

    now = 1000.0
    started = 0.0

    @property
    def commands(self) -> Server:
        return self

    def monotonic(self) -> float:
        return self.now

    async def info(self, section: str) -> dict[str, int]:
        return {"uptime_in_seconds": int(self.now - self.started)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(contact, "time", made)
    return made


@pytest.fixture
async def kept(server: Server) -> Contact:
    made = Contact(cast(RedisConnection, server), LEASE_S)
    assert not made.is_steady
    await made.make()
    return made


async def keep(kept: Contact, server: Server, seconds: float) -> None:
    """Contact every third of a lease."""
    for _ in range(round(seconds * 3 / LEASE_S)):
        server.now += LEASE_S / 3
        await kept.make()


async def test_who_was_cut_off_waits_for_a_lease(kept: Contact, server: Server) -> None:
    assert kept.is_steady, "the server was there for the others for long"
    server.now += LEASE_S * 2 / 3
    assert not kept.is_steady, "it may have been stopped, or the queue was away"
    await kept.make()
    await keep(kept, server, LEASE_S * 2 / 3)
    assert not kept.is_steady
    await keep(kept, server, LEASE_S / 3)
    assert kept.is_steady


async def test_nobody_trusts_a_server_that_has_just_started(kept: Contact, server: Server) -> None:
    server.started = server.now + 1.0  # so soon after its end that nobody else would have noticed
    await keep(kept, server, LEASE_S)
    assert not kept.is_steady
    await keep(kept, server, LEASE_S / 3)
    assert kept.is_steady


async def test_a_real_server_tells_its_uptime(connection: RedisConnection) -> None:
    for lease_s, becomes_steady in ((1.0, True), (3600.0, False)):
        kept = Contact(connection, lease_s)
        await kept.make()
        while becomes_steady and not kept.is_steady:
            await asyncio.sleep(0.05)
            await kept.make()
        assert kept.is_steady is becomes_steady
