"""The window: bounded, in order, and the oldest request can always be sent."""

from __future__ import annotations

import asyncio

from tinker_client._window import Window


class Request:
    """One request that waits for its place and holds it until it is answered."""

    def __init__(self, window: Window, seq_id: int, size: int = 1) -> None:
        self.sent, self.answered = False, asyncio.Event()
        self.task = asyncio.create_task(self._send(window, seq_id, size))

    async def _send(self, window: Window, seq_id: int, size: int) -> None:
        async with window.slot(seq_id, size):
            self.sent = True
            await self.answered.wait()

    async def answer(self) -> None:
        self.answered.set()
        await self.task
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def sent(requests: list[Request]) -> list[bool]:
    return [request.sent for request in requests]


async def test_the_window_slides_with_the_oldest_answer() -> None:
    window = Window(oldest=1, max_requests=2)
    requests = [Request(window, seq_id) for seq_id in (1, 2, 3, 4)]
    await settle()
    assert sent(requests) == [True, True, False, False]
    await requests[1].answer()
    assert sent(requests) == [True, True, False, False]
    await requests[0].answer()
    assert sent(requests) == [True, True, True, True]
    await requests[2].answer()
    await requests[3].answer()


async def test_the_oldest_is_sent_even_if_it_comes_last() -> None:
    window = Window(oldest=0, max_requests=3, max_bytes=10)
    later = [Request(window, seq_id, size=5) for seq_id in (2, 1, 3)]
    await settle()
    assert sent(later) == [True, True, False]
    oldest = Request(window, 0, size=1000)
    await settle()
    assert oldest.sent
    for request in (oldest, later[1], later[0], later[2]):
        await request.answer()


async def test_bytes_are_bounded_but_an_oversized_oldest_request_is_sent() -> None:
    window = Window(oldest=0, max_bytes=10)
    requests = [Request(window, seq_id, size) for seq_id, size in enumerate((6, 6, 1, 1000, 1))]
    await settle()
    assert sent(requests) == [True, False, False, False, False]  # nothing overtakes the second
    await requests[0].answer()
    assert sent(requests) == [True, True, True, False, False]
    await requests[1].answer()
    await requests[2].answer()
    assert sent(requests) == [True, True, True, True, False]
    await requests[3].answer()
    assert requests[4].sent
    await requests[4].answer()


async def test_who_gives_up_leaves_no_hole() -> None:
    window = Window(oldest=0, max_requests=1, max_bytes=10)
    requests = [Request(window, seq_id, size=10) for seq_id in range(4)]
    await settle()
    requests[1].task.cancel()  # waits
    await settle()
    requests[0].task.cancel()  # is on the wire
    await settle()
    assert requests[2].sent
    await requests[2].answer()
    await requests[3].answer()


async def test_giving_up_at_the_moment_of_admission_returns_the_place() -> None:
    window = Window(oldest=0, max_requests=1, max_bytes=10)
    first, second = Request(window, 0, size=10), Request(window, 1, size=10)
    await settle()
    first.answered.set()
    await first.task  # the second has been admitted, but has not run yet
    second.task.cancel()
    await asyncio.wait([second.task])
    third = Request(window, 2, size=10)
    await settle()
    assert third.sent
    await third.answer()
