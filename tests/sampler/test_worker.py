"""The sampler's loops, one at a time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from services.sampler.worker import SamplerWorker


class Queues:
    """Notes how much is asked for, and has nothing."""

    def __init__(self) -> None:
        self.asked_for: list[int] = []
        self.asked = asyncio.Event()

    async def take(self, worker: str, base_model: str, *, room: int, block_ms: int) -> None:
        self.asked_for.append(room)
        self.asked.set()
        await asyncio.Event().wait()


async def test_a_sampler_that_is_woken_and_finds_its_room_taken_asks_for_nothing() -> None:
    queues, nothing = Queues(), SimpleNamespace()
    parts: list[Any] = [SimpleNamespace(name="tiny"), SimpleNamespace(free_sequences=0), queues, *[nothing] * 5]
    worker = SamplerWorker("w", *parts, lease_s=1.0)
    taking = asyncio.create_task(worker._take())
    for _ in range(5):
        worker._has_room.set()
        await asyncio.sleep(0)
    assert queues.asked_for == []
    worker._room = 3
    worker._has_room.set()
    await asyncio.wait_for(queues.asked.wait(), 10)
    assert queues.asked_for == [3]
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    worker._device.close()
