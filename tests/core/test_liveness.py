"""When a worker may judge that others are dead: after a lease of steady link, not after a start or an outage."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from services.core.queue import liveness
from services.core.queue.connection import RedisConnection
from services.core.queue.liveness import Liveness

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
async def link(server: Server) -> Liveness:
    """A link that has been steady for long."""
    made = Liveness(cast(RedisConnection, server), LEASE_S)
    await made.probe()
    await probe_for(made, server, 2 * LEASE_S)
    assert made.is_steady
    return made


async def probe_for(link: Liveness, server: Server, seconds: float) -> None:
    """Probes the link every third of a lease."""
    for _ in range(round(seconds * 3 / LEASE_S)):
        server.now += LEASE_S / 3
        await link.probe()


async def is_steady_a_lease_later(link: Liveness, server: Server) -> bool:
    """Whether it is so then, and was not before."""
    await probe_for(link, server, LEASE_S * 2 / 3)
    was_steady = link.is_steady
    await probe_for(link, server, LEASE_S / 3)
    return link.is_steady and not was_steady


async def test_a_new_worker_waits_for_a_lease(server: Server) -> None:
    link = Liveness(cast(RedisConnection, server), LEASE_S)
    assert not link.is_steady
    await link.probe()
    assert await is_steady_a_lease_later(link, server)


async def test_a_worker_that_was_cut_off_waits_for_a_lease(link: Liveness, server: Server) -> None:
    server.now += LEASE_S * 2 / 3
    assert not link.is_steady, "it may have been stopped, or the queue was away"
    await link.probe()
    assert await is_steady_a_lease_later(link, server)


async def test_a_restart_of_the_server_is_an_outage_however_short(link: Liveness, server: Server) -> None:
    server.run_id = "second"
    await probe_for(link, server, LEASE_S / 3)
    assert await is_steady_a_lease_later(link, server)


async def test_a_link_to_a_real_server_becomes_steady(connection: RedisConnection, server: Server) -> None:
    link = Liveness(connection, LEASE_S)
    await link.probe()
    assert await is_steady_a_lease_later(link, server)


class SlowServer(Server):
    """Answers, but takes its time; never as long as would count as a gap."""

    async def ping(self) -> bool:
        self.now += LEASE_S / 4
        return True


async def test_a_link_to_a_slow_server_becomes_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowServer()
    monkeypatch.setattr(liveness, "time", slow)
    monkeypatch.setattr(liveness, "asyncio", slow)
    link, began = Liveness(cast(RedisConnection, slow), LEASE_S), slow.now
    keeping = asyncio.create_task(link.watch())
    try:
        while not link.is_steady:
            assert slow.now - began < 2 * LEASE_S
            await asyncio.sleep(0)
    finally:
        keeping.cancel()
