"""Who takes over the work of a silent worker: nobody who was cut off itself."""

from __future__ import annotations

import pytest

from services.core import contact
from services.core.connection import RedisConnection
from services.core.contact import Contact

LEASE_S = 9.0


class Clock:
    """Time as the test lets it pass."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(contact, "time", made)
    return made


async def keep(kept: Contact, clock: Clock, seconds: float) -> None:
    """Contact every third of a lease."""
    for _ in range(round(seconds * 3 / LEASE_S)):
        clock.now += LEASE_S / 3
        await kept.make()


async def test_who_was_cut_off_waits_for_a_lease(connection: RedisConnection, clock: Clock) -> None:
    kept = Contact(connection, LEASE_S)
    await keep(kept, clock, 2 * LEASE_S)
    assert kept.is_steady
    clock.now += LEASE_S
    assert not kept.is_steady, "it may have been stopped, or the queue was away"
    await kept.make()
    await keep(kept, clock, LEASE_S * 2 / 3)
    assert not kept.is_steady
    await keep(kept, clock, LEASE_S / 3)
    assert kept.is_steady


async def test_a_new_worker_trusts_a_queue_that_was_up_for_a_lease(connection: RedisConnection, clock: Clock) -> None:
    uptime_s = (await connection.commands.info("server"))["uptime_in_seconds"]
    for lease_s, is_steady in ((uptime_s / 2, True), (uptime_s + 10.0, False)):
        kept = Contact(connection, lease_s)
        await kept.begin()
        assert kept.is_steady is is_steady
