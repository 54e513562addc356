"""The one stream on which a session's results arrive, however many operations are outstanding.

An operation is expected before it is submitted, and submitted only once the watch is in place, so no result is missed.
When the stream breaks it is opened again, naming every operation still expected: those that finished in between come
first. One the platform has never heard of is the submit's business, which is still being repeated. Lives on the
background loop.
"""

from __future__ import annotations

import asyncio
import logging
import random

import grpc

from tinker_client._outage import Outage
from tinker_client._transport import Transport
from tinker_client.errors import TinkerError
from tinker_proto.v1 import operation_pb2

_log = logging.getLogger("tinker_client")


class Watch:
    """Outcomes of one session's operations; connects when it is first needed."""

    def __init__(self, transport: Transport, session_id: str) -> None:
        self._transport = transport
        self._session_id = session_id
        self._expected: dict[str, asyncio.Future[operation_pb2.Operation]] = {}
        self._in_place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def expect(self, name: str) -> asyncio.Future[operation_pb2.Operation]:
        """The finished operation `name`, to come; an exception if it never can."""
        outcome = self._expected[name] = asyncio.get_running_loop().create_future()
        return outcome

    def forget(self, name: str) -> None:
        """Stops expecting `name`."""
        self._expected.pop(name, None)

    def finish(self, operation: operation_pb2.Operation) -> None:
        """Hands an outcome over; a second one, or one that nobody expects, is ignored."""
        outcome = self._expected.get(operation.name)
        if operation.done and outcome is not None and not outcome.done():
            outcome.set_result(operation)

    def fail(self, name: str, error: BaseException) -> None:
        """Ends the wait for `name` with an exception, if it still lasts."""
        outcome = self._expected.get(name)
        if outcome is not None and not outcome.done():
            outcome.set_exception(error)

    async def in_place(self) -> None:
        """Waits until results arrive; raises TinkerError if that is not to be."""
        if self._task is None or self._task.done():
            self._in_place = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._keep_watching())
        await asyncio.shield(self._in_place)

    async def close(self, error: TinkerError) -> None:
        """Ends the watch; everything still expected fails with `error`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail_all(error)

    async def _keep_watching(self) -> None:
        outage = self._transport.outage()
        while True:
            try:
                await self._watch_once(outage)
                outage.end()  # the server ended the stream in good order: it is going away, another takes over
                pause = random.uniform(0.05, 0.2)
            except grpc.aio.AioRpcError as lost:
                try:
                    pause = outage.pause_after(lost)
                except TinkerError as error:
                    self._fail_all(error)
                    return
            if self._in_place.done():
                _log.warning("lost the stream of results from %s, connecting again", self._transport.address)
                self._in_place = asyncio.get_running_loop().create_future()
            await asyncio.sleep(pause)

    async def _watch_once(self, outage: Outage) -> None:
        request = operation_pb2.WatchOperationsRequest(session_id=self._session_id, pending=list(self._expected))
        async for message in self._transport.stream(self._transport.operations.WatchOperations, request):
            outage.end()
            if not self._in_place.done():
                self._in_place.set_result(None)
            for operation in message.operations:
                self.finish(operation)

    def _fail_all(self, error: TinkerError) -> None:
        for name in list(self._expected):
            self.fail(name, error)
        if not self._in_place.done():
            self._in_place.set_exception(error)
            self._in_place.exception()  # not an error that nobody looked at, if nobody was waiting
