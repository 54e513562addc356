"""The window: first come, first served, within both bounds, whoever gives up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tinker_client._window import Window


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Place:
    """One request that waits for its place and holds it until told to leave."""

    def __init__(self, window: Window, size: int) -> None:
        self.inside, self.leave = False, asyncio.Event()
        self.task = asyncio.create_task(self._stay(window, size))

    async def _stay(self, window: Window, size: int) -> None:
        async with window.place(size):
            self.inside = True
            await self.leave.wait()
        self.inside = False


async def test_both_bounds_hold_and_order_is_kept() -> None:
    window = Window(max_requests=2, max_bytes=10)
    places = [Place(window, size) for size in (6, 6, 1, 1)]
    await settle()
    assert [place.inside for place in places] == [True, False, False, False]  # nobody overtakes the second
    places[0].leave.set()
    await settle()
    assert [place.inside for place in places] == [False, True, True, False]
    for place in places:
        place.leave.set()
    await asyncio.gather(*(place.task for place in places))


async def test_a_request_larger_than_everything_goes_alone() -> None:
    window = Window(max_requests=5, max_bytes=10)
    small, large, after = Place(window, 1), Place(window, 1000), Place(window, 1)
    await settle()
    assert (small.inside, large.inside, after.inside) == (True, False, False)
    small.leave.set()
    await settle()
    assert (large.inside, after.inside) == (True, False)
    large.leave.set()
    await settle()
    assert after.inside
    after.leave.set()
    await after.task


async def test_who_gives_up_leaves_no_hole() -> None:
    window = Window(max_requests=1, max_bytes=10)
    first, waiting, last = Place(window, 1), Place(window, 10), Place(window, 1)
    await settle()
    waiting.task.cancel()
    await settle()
    first.leave.set()
    await settle()
    assert last.inside
    last.task.cancel()
    await asyncio.wait([last.task])
    async with AsyncExitStack() as stack:
        await asyncio.wait_for(stack.enter_async_context(window.place(10)), 5)


async def test_giving_up_at_the_moment_of_admission_returns_the_place() -> None:
    window = Window(max_requests=1, max_bytes=10)
    first, second = Place(window, 1), Place(window, 1)
    await settle()
    first.leave.set()
    await first.task  # the second has been admitted, but has not run yet
    second.task.cancel()
    await asyncio.wait([second.task])
    async with AsyncExitStack() as stack:
        await asyncio.wait_for(stack.enter_async_context(window.place(10)), 5)
