"""tinker.v1.SamplingService: opens sampling sessions and queues requests on them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

from services.core.config import GatewaySettings
from services.core.errors import InvalidArgumentError, UnavailableError
from services.core.names import MAX_SEQ_ID, OperationName
from services.core.process.server import Context
from services.core.queue.events import Watcher
from services.core.queue.token_stream import TokenListener
from services.gateway.creation import Creation
from services.gateway.responses import whole_bytes
from services.gateway.rpc.auth import Authenticator
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from services.gateway.validation.abilities import SamplingRequest
from tinker_proto.v1 import operation_pb2, sampling_pb2, sampling_pb2_grpc

RETURN_S = 15.0
"""How long the operation of a stream that has broken waits for its caller."""


class SamplingServicer(sampling_pb2_grpc.SamplingServiceServicer):
    """Sampling sessions pin their checkpoint when they are opened: what is saved later does not change them."""

    def __init__(
        self,
        stores: Stores,
        auth: Authenticator,
        submission: Submission,
        creation: Creation,
        settings: GatewaySettings,
    ) -> None:
        self._stores = stores
        self._auth = auth
        self._submission = submission
        self._creation = creation
        self._settings = settings
        self._cancelling: set[asyncio.Future[bool]] = set()

    async def CreateSamplingSession(
        self, request: sampling_pb2.CreateSamplingSessionRequest, context: Context
    ) -> sampling_pb2.SamplingSession:
        """Opens a sampling session on a base model or a checkpoint."""
        return await self._creation.sampling_session(await self._auth.tenant(context), request)

    async def GetSamplingSession(
        self, request: sampling_pb2.GetSamplingSessionRequest, context: Context
    ) -> sampling_pb2.SamplingSession:
        """A sampling session of the caller's tenant."""
        tenant = await self._auth.tenant(context)
        return (await self._stores.catalog.sampling_session(request.sampling_session_id, tenant))[0]

    async def Sample(self, request: sampling_pb2.SampleRequest, context: Context) -> operation_pb2.Operation:
        """Queues a generation."""
        return await self._sample(request, context)

    async def ComputeLogprobs(
        self, request: sampling_pb2.ComputeLogprobsRequest, context: Context
    ) -> operation_pb2.Operation:
        """Queues a scoring."""
        return await self._sample(request, context)

    async def MergeWeights(
        self, request: sampling_pb2.MergeWeightsRequest, context: Context
    ) -> operation_pb2.Operation:
        """Queues the writing of a full model."""
        return await self._sample(request, context)

    async def SampleStream(
        self, request: sampling_pb2.SampleStreamRequest, context: Context
    ) -> AsyncIterator[sampling_pb2.SampleStreamResponse]:
        """Queues a generation and relays its tokens; one whose caller goes away and does not come back is cancelled."""
        tenant = await self._auth.tenant(context)
        generation, whole = request.request, whole_bytes(self._settings, request.max_response_bytes)
        if not generation.HasField("seq_id"):
            generation.seq_id = secrets.randbelow(MAX_SEQ_ID)
        name = OperationName.parse(f"{generation.sampling_session_id}:{generation.seq_id}")
        reader, stores = secrets.token_hex(8), self._stores
        _check_received(request)
        with (
            stores.tokens.listen(str(name), request.received) as tokens,
            stores.events.watch(name.session_id) as watcher,
        ):
            operation = await self._submission.sample(tenant, generation, streamed=True)
            await stores.tokens.join(str(name), reader)
            if request.received and not operation.done:
                await stores.tokens.ask_again(str(name))
            relayed = False

            def cancel_unless_relayed(_: object) -> None:
                if not relayed:
                    cancelling = asyncio.ensure_future(self._cancel_unless_joined(name, reader))
                    self._cancelling.add(cancelling)
                    cancelling.add_done_callback(self._cancelling.discard)

            context.add_done_callback(cancel_unless_relayed)  # type: ignore[arg-type]  # the stub names a class
            try:
                yield sampling_pb2.SampleStreamResponse(operation=operation)
                async for pieces in _until_finished(str(name), operation, tokens, watcher):
                    yield sampling_pb2.SampleStreamResponse(pieces=pieces)
                relayed = True
                operation = await stores.operations.get(str(name), tenant, whole_bytes=whole)
                yield sampling_pb2.SampleStreamResponse(operation=operation)
            except UnavailableError:
                relayed = True  # this gateway is going away, the caller is not
                raise

    async def _cancel_unless_joined(self, name: OperationName, reader: str) -> bool:
        """Cancels an operation whose reader has gone, unless somebody reads it again within `RETURN_S`."""
        await asyncio.sleep(RETURN_S)
        return await self._stores.operations.cancel(name, reader=reader)

    async def _sample(self, request: SamplingRequest, context: Context) -> operation_pb2.Operation:
        return await self._submission.sample(await self._auth.tenant(context), request)


def _check_received(request: sampling_pb2.SampleStreamRequest) -> None:
    most = max(request.request.num_samples, 1)
    if len(request.received) > most:
        raise InvalidArgumentError.must_be("received", f"one number for each of {most} samples", len(request.received))
    for i, count in enumerate(request.received):
        if count < 0:
            raise InvalidArgumentError.must_be(f"received[{i}]", "at least 0", count)


async def _until_finished(
    name: str, operation: operation_pb2.Operation, tokens: TokenListener, watcher: Watcher
) -> AsyncIterator[list[sampling_pb2.SampledPiece]]:
    """Tokens as they come, until the operation is finished.

    Raises:
        UnavailableError: nobody will say when that is.
    """
    if operation.done:
        return
    finished = asyncio.create_task(_is_named(name, watcher))
    news = asyncio.create_task(tokens.next_pieces())
    try:
        while True:
            await asyncio.wait({finished, news}, return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                yield news.result()
                news = asyncio.create_task(tokens.next_pieces())
                continue
            if finished.result():
                return
            raise UnavailableError("the stream has ended; open it again under the same seq_id", reason="WATCH_ENDED")
    finally:
        finished.cancel()
        news.cancel()


async def _is_named(name: str, watcher: Watcher) -> bool:
    """Waits until an operation has finished; False if the watch ends before."""
    while (names := await watcher.next_names()) is not None:
        if name in names:
            return True
    return False
