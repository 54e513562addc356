"""Nobody asks the queue for work while there is no slot for it."""

from __future__ import annotations

import asyncio

from services.sampler.free_slots import FreeSlots


async def test_a_waiter_that_finds_its_slots_taken_again_waits_on() -> None:
    slots = FreeSlots()
    waiting = asyncio.create_task(slots.some())
    for _ in range(5):
        slots.update(2)  # wakes it
        slots.update(0)  # before its turn comes
        await asyncio.sleep(0)
    assert not waiting.done()
    slots.update(3)
    async with asyncio.timeout(10):
        assert await waiting == 3


async def test_slots_that_are_free_already_are_had_at_once() -> None:
    slots = FreeSlots()
    slots.update(2)
    assert slots.count == await slots.some() == 2
