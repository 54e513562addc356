"""Reservations of requests: never more than the budget, and in turn."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from services.gateway.request_budget import RequestBudget


class Taker:
    """Reserves bytes in tasks, and notes which are served."""

    def __init__(self, budget: RequestBudget) -> None:
        self.budget = budget
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def take(self, name: str, owner: str, size_bytes: int) -> None:
        self._leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, owner, size_bytes))
        await self.settle()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self.tasks[name]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def _hold(self, name: str, owner: str, size_bytes: int) -> None:
        async with self.budget.reserve(owner, size_bytes):
            self.served.append(name)
            await self._leave[name].wait()

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def test_an_owner_has_no_more_than_its_share_and_holds_up_nobody_else() -> None:
    taker = Taker(RequestBudget(40, 10))
    for name in ("a1", "a2", "b1"):
        await taker.take(name, name[0], 10)
    assert taker.served == ["a1", "b1"]
    await taker.leave("a1")
    assert taker.served == ["a1", "b1", "a2"]
    await taker.end()


async def test_owners_are_served_in_turn_when_the_budget_is_used_up() -> None:
    taker = Taker(RequestBudget(40, 10))
    for name in ("a1", "b1", "c1", "d1", "e1", "a2", "a3", "f1"):
        await taker.take(name, name[0], 10)
    for name in ("a1", "b1", "c1", "d1"):
        await taker.leave(name)
    assert taker.served == ["a1", "b1", "c1", "d1", "e1", "a2", "f1"]
    await taker.end()


async def test_small_requests_do_not_pass_a_large_one_for_ever() -> None:
    taker = Taker(RequestBudget(40, 40))
    for name, size_bytes in (("a1", 30), ("b1", 40), ("c1", 1)):
        await taker.take(name, name[0], size_bytes)
    assert taker.served == ["a1"]
    await taker.leave("a1")
    assert taker.served == ["a1", "b1"]
    await taker.leave("b1")
    assert taker.served == ["a1", "b1", "c1"]
    await taker.end()


async def test_bytes_that_a_request_does_not_need_are_released() -> None:
    budget = RequestBudget(40, 10)
    taker = Taker(budget)
    async with AsyncExitStack() as held:
        reservation = await held.enter_async_context(budget.reserve("a", 10))
        await taker.take("a2", "a", 9)
        assert taker.served == []
        reservation.shrink(1)
        await taker.settle()
        assert taker.served == ["a2"]
        reservation.shrink(5)
        await taker.take("a3", "a", 1)
        assert taker.served == ["a2"], "what was given back is not had again"
    await taker.settle()
    assert taker.served == ["a2", "a3"]
    await taker.end()


async def test_a_cancelled_request_releases_its_bytes_and_its_turn() -> None:
    taker = Taker(RequestBudget(10, 10))
    for name in ("a1", "a2", "b1"):
        await taker.take(name, name[0], 10)
    taker.tasks["a2"].cancel()
    taker.tasks["a1"].cancel()
    await taker.settle()
    assert taker.served == ["a1", "b1"]
    taker.tasks["b1"].cancel()
    await taker.take("c1", "c", 10)
    assert taker.served == ["a1", "b1", "c1"]
    await taker.end()


async def test_a_request_cancelled_while_it_is_served_keeps_nothing() -> None:
    taker = Taker(RequestBudget(10, 10))
    await taker.take("a1", "a", 10)
    await taker.take("b1", "b", 10)
    taker.tasks["a1"].cancel()
    while not taker.tasks["a1"].done():
        await asyncio.sleep(0)
    taker.tasks["b1"].cancel()
    await taker.take("c1", "c", 10)
    assert taker.served in (["a1", "c1"], ["a1", "b1", "c1"])
    await taker.end()
