"""SampleStream: a generation whose tokens are handed out as they come.

Nothing is fetched before it is asked for: a slow reader holds the platform back and not its own memory. When the
connection breaks the stream is opened again under the same seq_id, behind what was received; what is missed all the
same comes with the result, so every token is handed out exactly once and in order. It can be read in any event loop or
thread, by one reader.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import grpc

from tinker_client import _convert, types
from tinker_client._loop import BackgroundLoop
from tinker_client._session import OpenSession, operation_response
from tinker_client._stored_response import MAX_RESPONSE_BYTES, with_response
from tinker_client.errors import TinkerError
from tinker_proto.v1 import operation_pb2, sampling_pb2

_REOPEN_S = 0.1

Messages = AsyncIterator[sampling_pb2.SampleStreamResponse]


class SampleStream:
    """Tokens of one `sample_stream` call, as SampledToken values in the order in which they arrive; for one reader.

    Leaving a `with` or `async with` block cancels a generation that is not finished.
    """

    def __init__(
        self,
        loop: BackgroundLoop,
        session: OpenSession,
        request: sampling_pb2.SampleRequest,
        slot: AbstractAsyncContextManager[None],
    ) -> None:
        self._loop = loop
        self._session = session
        self._request = request
        self._name = f"{request.sampling_session_id}:{request.seq_id}"
        self._slot: AbstractAsyncContextManager[None] | None = slot
        self._messages: Messages | None = None
        self._was_opened = False
        self._outage = session.transport.outage()
        self._handed_out: defaultdict[int, int] = defaultdict(int)
        self._waiting: deque[types.SampledToken] = deque()
        self._response: types.SampleResponse | None = None
        self._error: TinkerError | None = None
        self._fetching = asyncio.Lock()
        loop.start(self._begin())

    def __iter__(self) -> Iterator[types.SampledToken]:
        return self

    def __next__(self) -> types.SampledToken:
        while not self._waiting:
            if self._response is not None:
                raise StopIteration
            self._loop.run(self._fetch())
        return self._waiting.popleft()

    def __aiter__(self) -> AsyncIterator[types.SampledToken]:
        return self

    async def __anext__(self) -> types.SampledToken:
        while not self._waiting:
            if self._response is not None:
                raise StopAsyncIteration
            await asyncio.wrap_future(self._loop.start(self._fetch()))
        return self._waiting.popleft()

    def result(self) -> types.SampleResponse:
        """Waits for the end of the generation and returns it; tokens that were not read can still be read.

        Returns:
            The SampleResponse that `sample` would return.

        Raises:
            TinkerError: the operation was refused, failed or was cancelled.
        """
        return self._loop.run(self._read_all())

    async def result_async(self) -> types.SampleResponse:
        """Like `result`, for use in an event loop; awaiting it gives the value."""
        return await asyncio.wrap_future(self._loop.start(self._read_all()))

    def cancel(self) -> None:
        """Asks the platform to drop the generation, and so to free its memory; has no effect if it is done."""
        self._loop.start(self._cancel())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def _begin(self) -> None:
        """Has the generation accepted, so that it runs whether or not somebody reads already."""
        try:
            await self._fetch()
        except TinkerError:
            return  # kept for the reader

    async def _read_all(self) -> types.SampleResponse:
        while self._response is None:
            await self._fetch()
        return self._response

    async def _fetch(self) -> None:
        """Takes the next message."""
        async with self._fetching:
            if self._error is not None:
                raise self._error
            if self._response is not None:
                return
            try:
                message = await self._next_message()
                await self._take(message)
            except TinkerError as error:
                self._error = error
                raise

    async def _next_message(self) -> sampling_pb2.SampleStreamResponse:
        while True:
            try:
                if self._slot is not None:
                    async with self._slot:
                        self._slot = None
                        return await anext(self._opened())
                return await anext(self._opened())
            except grpc.aio.AioRpcError as error:
                self._messages = None
                await asyncio.sleep(self._outage.pause_after(error))
            except StopAsyncIteration:  # ended without a result: this server is going away, another takes over
                self._messages = None
                await asyncio.sleep(_REOPEN_S)

    def _opened(self) -> Messages:
        if self._messages is None:
            request = sampling_pb2.SampleStreamRequest(request=self._request, max_response_bytes=MAX_RESPONSE_BYTES)
            if self._was_opened:
                samples = max(self._request.num_samples, 1)
                request.received.extend(self._handed_out[index] for index in range(samples))
            self._was_opened = True
            self._messages = self._session.transport.stream(self._session.transport.sampling.SampleStream, request)
        return self._messages

    async def _take(self, message: sampling_pb2.SampleStreamResponse) -> None:
        self._outage.end()
        for delta in message.pieces:
            if delta.start <= self._handed_out[delta.sequence_index]:  # else one was lost: the result has it
                self._hand_out(delta.sequence_index, delta.start, delta.tokens, delta.logprobs, delta.stop_reason)
        if message.operation.done:
            operation = await with_response(self._session.transport, message.operation)
            response = operation_response(operation, sampling_pb2.SampleResponse)
            for index, item in enumerate(response.sequences):
                self._hand_out(index, 0, item.tokens, item.logprobs, item.stop_reason)
            self._response = _convert.sample_response(response)

    def _hand_out(
        self,
        index: int,
        start: int,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        reason: sampling_pb2.StopReason.ValueType,
    ) -> None:
        known, end = self._handed_out[index] - start, start + len(tokens)
        for position in range(known, len(tokens)):
            is_last = start + position + 1 == end
            stop_reason = _convert.stop_reason(reason) if is_last else None
            self._waiting.append(types.SampledToken(index, tokens[position], logprobs[position], stop_reason))
        self._handed_out[index] = max(self._handed_out[index], end)

    async def _cancel(self) -> None:
        if self._response is None and self._error is None:
            await self._session.transport.call(
                self._session.transport.operations.CancelOperation,
                operation_pb2.CancelOperationRequest(name=self._name),
            )
