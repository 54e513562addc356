"""One client process at the platform: its session, its watch, and how an operation is carried out.

Training runs and sampling sessions are counted here, because their names derive from the session's. Lives on the
background loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from tinker_client._transport import Transport
from tinker_client._watch import Expected, Watch
from tinker_client.errors import RequestFailedError, TinkerError, from_operation_error
from tinker_proto.v1 import operation_pb2, session_pb2

R = TypeVar("R", bound=Message)
SubmitMethod = grpc.aio.UnaryUnaryMultiCallable[Any, operation_pb2.Operation]

_log = logging.getLogger("tinker_client")

_LAST_WORDS_S = 2.0


class OpenSession:
    """An open session."""

    def __init__(self, transport: Transport, session_id: str) -> None:
        self.transport = transport
        self.session_id = session_id
        self.training_run_seq_ids = itertools.count()
        self.sampling_session_seq_ids = itertools.count()
        self._watch = Watch(transport, session_id)

    @classmethod
    async def open(cls, transport: Transport, user_metadata: Mapping[str, str]) -> OpenSession:
        """Opens a session and its watch, which also keeps it alive."""
        request = session_pb2.CreateSessionRequest(user_metadata=user_metadata)
        session = cls(transport, (await transport.call(transport.sessions.CreateSession, request)).session_id)
        await session._watch.ready()
        return session

    async def carry_out(
        self,
        name: str,
        method: SubmitMethod,
        request: Message,
        response: type[R],
        *,
        slot: AbstractAsyncContextManager[None],
        cancelled: asyncio.Event | None = None,
    ) -> R:
        """Submits an operation that will be called `name`, and returns its response once it is done.

        It holds `slot` while it is submitted. Once `cancelled`, if given, is set and the operation is accepted, the
        platform is asked to drop it.

        Raises:
            APIStatusError, APIConnectionError: the operation was not accepted.
            RequestFailedError: it was, and failed.
        """
        expected = self._watch.expect(name)
        submit = asyncio.create_task(self._submit(expected, method, request, slot, cancelled))
        submit.add_done_callback(lambda task: self._pass_on_failure(name, task))
        try:
            operation = await expected.outcome
            if operation.HasField("error"):
                # A refused request is also recorded as a failed operation, and the record may come first.
                await expected.answered.wait()
                if submit.done():
                    submit.result()
            return operation_response(operation, response)
        finally:
            submit.cancel()
            self._watch.forget(name)

    def fail(self, name: str, error: TinkerError) -> None:
        """Ends the wait for operation `name`, which can never finish."""
        self._watch.fail(name, error)

    async def knows(self, name: str) -> bool:
        """Whether the platform is known to have a record of operation `name`."""
        request = operation_pb2.GetOperationRequest(name=name)
        return await self.transport.call_once(self.transport.operations.GetOperation, request, _LAST_WORDS_S)

    async def state(self, name: str) -> str:
        """Where operation `name` stands, as a phrase for whoever waits for it; asked once.

        Raises:
            TinkerError: the platform does not say.
        """
        request = operation_pb2.GetOperationRequest(name=name, max_response_bytes=1)
        operation = await self.transport.call(self.transport.operations.GetOperation, request)
        return f"{operation.method}, {_stands(operation)}"

    async def end(self) -> None:
        """Ends the session; everything outstanding fails. Takes a few seconds at most."""
        await self._watch.close(TinkerError("the client was closed while this operation was outstanding"))
        request = session_pb2.EndSessionRequest(session_id=self.session_id)
        await self.transport.call_once(self.transport.sessions.EndSession, request, _LAST_WORDS_S)

    async def _submit(
        self,
        expected: Expected,
        method: SubmitMethod,
        request: Message,
        slot: AbstractAsyncContextManager[None],
        cancelled: asyncio.Event | None,
    ) -> None:
        try:
            async with slot:
                await self._watch.ready()
                expected.submitted = True
                self._watch.finish(await self.transport.call(method, request))
        finally:
            expected.answered.set()
        if cancelled is not None:
            await cancelled.wait()
            await self._cancel(expected.name)

    async def _cancel(self, name: str) -> None:
        request = operation_pb2.CancelOperationRequest(name=name)
        try:
            self._watch.finish(await self.transport.call(self.transport.operations.CancelOperation, request))
        except TinkerError as error:  # the operation itself goes on
            _log.warning("operation %s could not be cancelled: %s", name, error)

    def _pass_on_failure(self, name: str, submit: asyncio.Task[None]) -> None:
        if not submit.cancelled() and (error := submit.exception()) is not None:
            self._watch.fail(name, error)


def _stands(operation: operation_pb2.Operation) -> str:
    if not operation.HasField("queue_place"):
        return "which is done" if operation.done else "which runs"
    place = operation.queue_place
    ahead = f"which has {place.operations_ahead:,} operations before it"
    if not place.HasField("estimated_wait"):
        return ahead
    return f"{ahead}, about {place.estimated_wait.ToTimedelta().total_seconds():.0f} s"


def operation_response(operation: operation_pb2.Operation, response: type[R]) -> R:
    """What a finished operation has returned.

    Raises:
        RequestFailedError: it has failed.
    """
    if operation.HasField("error"):
        raise from_operation_error(operation.name, operation.error)
    unpacked = response()
    if not operation.response.Unpack(unpacked):
        raise RequestFailedError(
            f"operation {operation.name} has a result of type {operation.response.TypeName()!r} instead of "
            f"{response.DESCRIPTOR.full_name}: server and client are of different versions",
            request_id=operation.name,
            category="server",
        )
    return unpacked
