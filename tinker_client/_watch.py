"""The one stream on which a session's results arrive, however many operations are outstanding.

An operation is expected before it is submitted, and submitted only once the watch is ready, so no result is missed.
When the stream breaks it is opened again, naming every operation that was submitted: those that finished in between
come first. One the platform has never heard of is the submit's business, which is still being repeated. Lives on the
background loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field

import grpc

from tinker_client._outage import Outage
from tinker_client._stored_response import MAX_RESPONSE_BYTES, with_response
from tinker_client._transport import Transport
from tinker_client.errors import TinkerError
from tinker_proto.v1 import operation_pb2

_log = logging.getLogger("tinker_client")


@dataclass
class Expected:
    """An operation that somebody waits for.

    `submitted` once the platform may know it, `answered` once the platform has said whether it accepts it.
    """

    name: str
    outcome: asyncio.Future[operation_pb2.Operation] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    submitted: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class Watch:
    """Outcomes of one session's operations; connects when it is first needed."""

    def __init__(self, transport: Transport, session_id: str) -> None:
        self._transport = transport
        self._session_id = session_id
        self._expected: dict[str, Expected] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._reading: dict[str, asyncio.Task[None]] = {}
        """Stored responses on their way, by operation."""

    def expect(self, name: str) -> Expected:
        """Registers an operation; its outcome is the finished operation, or an exception if it never can be."""
        expected = self._expected[name] = Expected(name)
        return expected

    def forget(self, name: str) -> None:
        """Stops expecting `name`."""
        self._expected.pop(name, None)
        if (reading := self._reading.pop(name, None)) is not None:
            reading.cancel()

    def finish(self, operation: operation_pb2.Operation) -> None:
        """Hands an outcome over; a second one, or one that nobody expects, is ignored.

        A response that is too large for a message is read first, while others arrive.
        """
        expected = self._expected.get(operation.name)
        if not operation.done or expected is None or expected.outcome.done():
            return
        if not operation.HasField("stored_response"):
            expected.outcome.set_result(operation)
        elif operation.name not in self._reading:
            self._reading[operation.name] = asyncio.create_task(self._read(operation))

    def fail(self, name: str, error: BaseException) -> None:
        """Ends the wait for `name` with an exception, if it still lasts."""
        expected = self._expected.get(name)
        if expected is not None and not expected.outcome.done():
            expected.outcome.set_exception(error)

    async def ready(self) -> None:
        """Waits until results arrive; raises TinkerError if that is not to be."""
        if self._task is None or self._task.done():
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run())
        await asyncio.shield(self._ready)

    async def close(self, error: TinkerError) -> None:
        """Ends the watch; everything still expected fails with `error`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for reading in self._reading.values():
            reading.cancel()
        self._fail_all(error)

    async def _read(self, operation: operation_pb2.Operation) -> None:
        try:
            self.finish(await with_response(self._transport, operation))
        except Exception as error:
            self.fail(operation.name, error)

    async def _run(self) -> None:
        outage = self._transport.outage()
        try:
            while True:
                pause = await self._watch_until_it_breaks(outage)
                if self._ready.done():
                    _log.warning("lost the stream of results from %s, connecting again", self._transport.address)
                    self._ready = asyncio.get_running_loop().create_future()
                await asyncio.sleep(pause)
        except TinkerError as error:
            self._fail_all(error)

    async def _watch_until_it_breaks(self, outage: Outage) -> float:
        """Returns how long to wait before it is worth trying again."""
        pending = [expected.name for expected in self._expected.values() if expected.submitted]
        request = operation_pb2.WatchOperationsRequest(
            session_id=self._session_id, pending=pending, max_response_bytes=MAX_RESPONSE_BYTES
        )
        try:
            async for message in self._transport.stream(self._transport.operations.WatchOperations, request):
                if not self._ready.done():
                    self._ready.set_result(None)
                for operation in message.operations:
                    self.finish(operation)
        except grpc.aio.AioRpcError as error:
            if self._ready.done():
                outage.end()  # the platform was there until this moment, however silent
            return outage.pause_after(error)
        return random.uniform(0.05, 0.2)  # ended in good order: this server is going away, another takes over

    def _fail_all(self, error: TinkerError) -> None:
        for name in list(self._expected):
            self.fail(name, error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # it has been seen, even if nobody was waiting
