"""Who takes over the work of a silent worker: nobody who has just begun, or was cut off, and nobody after an outage."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from services.core.queue import liveness
from services.core.queue.connection import RedisConnection
from services.core.queue.liveness import Contact

LEASE_S = 9.0


class Server:
    """Time as the test lets it pass, and a server that is another one after it has restarted."""

    now = 1000.0
    run_id = "first"

    @property
    def commands(self) -> Server:
        return self

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def ping(self) -> bool:
        return True

    async def info(self, section: str) -> dict[str, str]:
        return {"run_id": self.run_id}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(liveness, "time", made)
    return made


@pytest.fixture
async def kept(server: Server) -> Contact:
    """Contact that has been steady for long."""
    made = Contact(cast(RedisConnection, server), LEASE_S)
    await made.make()
    await keep(made, server, 2 * LEASE_S)
    assert made.is_steady
    return made


async def keep(kept: Contact, server: Server, seconds: float) -> None:
    """Contact every third of a lease."""
    for _ in range(round(seconds * 3 / LEASE_S)):
        server.now += LEASE_S / 3
        await kept.make()


async def is_steady_a_lease_later(kept: Contact, server: Server) -> bool:
    """Whether it is so then, and was not before."""
    await keep(kept, server, LEASE_S * 2 / 3)
    was_steady = kept.is_steady
    await keep(kept, server, LEASE_S / 3)
    return kept.is_steady and not was_steady


async def test_who_begins_waits_for_a_lease(server: Server) -> None:
    kept = Contact(cast(RedisConnection, server), LEASE_S)
    assert not kept.is_steady
    await kept.make()
    assert await is_steady_a_lease_later(kept, server)


async def test_who_was_cut_off_waits_for_a_lease(kept: Contact, server: Server) -> None:
    server.now += LEASE_S * 2 / 3
    assert not kept.is_steady, "it may have been stopped, or the queue was away"
    await kept.make()
    assert await is_steady_a_lease_later(kept, server)


async def test_a_restart_of_the_server_is_an_outage_however_short(kept: Contact, server: Server) -> None:
    server.run_id = "second"
    await keep(kept, server, LEASE_S / 3)
    assert await is_steady_a_lease_later(kept, server)


async def test_contact_with_a_real_server_becomes_steady(connection: RedisConnection, server: Server) -> None:
    kept = Contact(connection, LEASE_S)
    await kept.make()
    assert await is_steady_a_lease_later(kept, server)


class SlowServer(Server):
    """Answers, but takes its time; never as long as would count as a gap."""

    async def ping(self) -> bool:
        self.now += LEASE_S / 4
        return True


async def test_contact_with_a_slow_server_becomes_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowServer()
    monkeypatch.setattr(liveness, "time", slow)
    monkeypatch.setattr(liveness, "asyncio", slow)
    kept, began = Contact(cast(RedisConnection, slow), LEASE_S), slow.now
    keeping = asyncio.create_task(kept.keep())
    try:
        while not kept.is_steady:
            assert slow.now - began < 2 * LEASE_S
            await asyncio.sleep(0)
    finally:
        keeping.cancel()
