"""Generations from the queue: submitted like any client's, awaited or streamed, cancelled when the caller goes away."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from services.core.errors import FailedPreconditionError, UnavailableError, from_operation_error
from services.core.names import MAX_SEQ_ID, OperationName
from services.core.queue.token_stream import TokenListener
from services.gateway.http.backend import Backend
from services.gateway.waiting import until_done
from tinker_proto.v1 import operation_pb2, sampling_pb2


@dataclass(frozen=True)
class NewTokens:
    """Tokens of one sequence as they come."""

    prompt: int
    """Which of the requests."""

    sequence: int
    tokens: Sequence[int]
    logprobs: Sequence[float]
    stop_reason: sampling_pb2.StopReason.ValueType
    """Set with the sequence's last tokens."""


class Generations:
    """Runs sampling requests of one gateway's callers."""

    def __init__(self, backend: Backend) -> None:
        self._stores = backend.stores
        self._submission = backend.submission
        self._cancelling: set[asyncio.Future[bool]] = set()

    async def run(
        self, tenant: str, requests: Sequence[sampling_pb2.SampleRequest]
    ) -> list[sampling_pb2.SampleResponse]:
        """All responses, in order; what is not finished when this ends early is cancelled.

        Raises:
            PlatformError: one of the requests is refused or fails.
        """
        names = [_named(request) for request in requests]
        unfinished = set(names)

        async def one(name: OperationName, request: sampling_pb2.SampleRequest) -> sampling_pb2.SampleResponse:
            await self._submit(tenant, request)
            operation = await self._until_done(name, tenant)
            unfinished.discard(name)
            return _response(operation)

        tasks = [asyncio.ensure_future(one(*pair)) for pair in zip(names, requests, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            self._cancel(unfinished)

    async def stream(self, tenant: str, requests: Sequence[sampling_pb2.SampleRequest]) -> AsyncGenerator[Any, None]:
        """Yields NewTokens as they come, then the list of responses; ends as `run` does."""
        news: asyncio.Queue[NewTokens | None] = asyncio.Queue()
        names = [_named(request) for request in requests]
        unfinished = set(names)

        async def one(index: int) -> sampling_pb2.SampleResponse:
            name, request = names[index], requests[index]
            with self._stores.tokens.listen(str(name)) as tokens:
                await self._submit(tenant, request, streamed=True)
                relaying = asyncio.create_task(_relay(index, tokens, news))
                try:
                    operation = await self._until_done(name, tenant)
                finally:
                    relaying.cancel()
                unfinished.discard(name)
                return _response(operation)

        async def everything() -> list[sampling_pb2.SampleResponse]:
            try:
                return list(await asyncio.gather(*(one(i) for i in range(len(requests)))))
            finally:
                news.put_nowait(None)

        work = asyncio.create_task(everything())
        try:
            while (new := await news.get()) is not None:
                yield new
            yield await work
        finally:
            work.cancel()
            self._cancel(unfinished)

    async def _submit(self, tenant: str, request: sampling_pb2.SampleRequest, *, streamed: bool = False) -> None:
        """Queues a request.

        Raises:
            UnavailableError: the gateway has replaced the session that the request was prepared for.
        """
        try:
            await self._submission.sample(tenant, request, streamed=streamed)
        except FailedPreconditionError as error:
            if error.reason != "SESSION_ENDED":
                raise
            raise UnavailableError("the gateway has opened another session meanwhile; send the request again") from None

    async def _until_done(self, name: OperationName, tenant: str) -> operation_pb2.Operation:
        """The operation once it is done.

        Raises:
            UnavailableError: this gateway is about to stop.
        """
        operation = await until_done(self._stores, name, tenant)
        if not operation.done:
            raise UnavailableError("this gateway is about to stop; send the request again")
        return operation

    def _cancel(self, names: set[OperationName]) -> None:
        for name in names:
            cancelling = asyncio.ensure_future(self._stores.operations.cancel(name))
            self._cancelling.add(cancelling)
            cancelling.add_done_callback(self._cancelling.discard)


async def _relay(index: int, tokens: TokenListener, news: asyncio.Queue[NewTokens | None]) -> None:
    """Hands over what comes without a gap; the response has the rest."""
    known: dict[int, int] = {}
    while True:
        for piece in await tokens.next_pieces():
            if piece.start == known.get(piece.sequence_index, 0):
                known[piece.sequence_index] = piece.start + len(piece.tokens)
                reason = piece.stop_reason
                news.put_nowait(NewTokens(index, piece.sequence_index, piece.tokens, piece.logprobs, reason))


def _named(request: sampling_pb2.SampleRequest) -> OperationName:
    request.seq_id = secrets.randbelow(MAX_SEQ_ID)
    return OperationName(request.sampling_session_id, request.seq_id)


def _response(operation: operation_pb2.Operation) -> sampling_pb2.SampleResponse:
    if operation.HasField("error"):
        raise from_operation_error(operation.error)
    response = sampling_pb2.SampleResponse()
    operation.response.Unpack(response)
    return response
