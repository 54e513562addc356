"""Large pieces of work: tenants take turns, and the gateway's loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from services.core.errors import InvalidArgumentError, UnavailableError
from services.gateway.work import AT_ONCE, SMALL, Work

LARGE = SMALL + 1


def refuse() -> None:
    raise InvalidArgumentError.must_be("x", "y", reason="BAD_SHAPE")


async def test_tenants_take_turns_and_small_work_takes_none() -> None:
    work, go, order = Work(), threading.Event(), []

    def piece(name: str) -> None:
        go.wait(60)
        order.append(name)

    alice = [asyncio.create_task(work.in_thread("alice", LARGE, piece, f"alice {i}")) for i in range(4)]
    await asyncio.sleep(0)
    others = [asyncio.create_task(work.in_thread(name, LARGE, piece, name)) for name in ("bob", "carol")]
    small = [asyncio.create_task(work.in_thread("dave", SMALL, order.append, "dave"))]
    await asyncio.wait(small, timeout=60)
    assert order == ["dave"], "all turns are taken"
    go.set()
    await asyncio.gather(*alice, *others)
    assert max(order.index("bob"), order.index("carol")) <= order.index("alice 2")


async def test_one_tenant_has_one_turn_at_a_time() -> None:
    work, running, most = Work(), 0, 0
    lock = threading.Lock()

    def piece() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    await asyncio.gather(*(work.in_thread("alice", LARGE, piece) for _ in range(20)))
    assert most == 1
    assert AT_ONCE > 1, "another tenant has a turn meanwhile"


async def test_a_caller_that_gives_up_keeps_its_turn_until_the_work_has_ended() -> None:
    work, started, go, order = Work(), threading.Event(), threading.Event(), []

    def slow() -> None:
        started.set()
        go.wait(60)
        order.append("slow")

    first = asyncio.create_task(work.in_thread("alice", LARGE, slow))
    await asyncio.to_thread(started.wait, 60)
    first.cancel()
    second = asyncio.create_task(work.in_thread("alice", LARGE, order.append, "second"))
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait({first, second})
    assert first.cancelled()
    assert order == ["slow", "second"]


async def test_a_process_returns_raises_and_may_die() -> None:
    work = Work()
    assert await work.in_process("alice", divmod, 7, 3) == (2, 1)
    with pytest.raises(InvalidArgumentError) as refusal:
        await work.in_process("alice", refuse)
    assert (refusal.value.reason, refusal.value.violations[0].field) == ("BAD_SHAPE", "x")
    with pytest.raises(UnavailableError):
        await work.in_process("alice", os._exit, 1)
    assert await work.in_process("alice", divmod, 7, 3) == (2, 1)
    work.close()
