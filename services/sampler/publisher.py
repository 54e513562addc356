"""The publisher of streamed tokens, apart from the steps, so that no step waits for Redis.

Tokens of several steps go together when Redis is slower than the engine. Tokens that are lost on the way are in the
result, and all that an operation has so far are published again when a caller has come back for them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator

import structlog

from services.core.queue.connection import TRANSIENT_ERRORS
from services.core.queue.token_stream import TokenStream
from services.sampler.convert import to_sampled_piece
from services.sampler.request import TokenDelta
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

_MESSAGE_BYTES = 1 << 20
"""About the most of one message of what is published again, so that Redis need not buffer much at once."""

_log = structlog.get_logger(__name__)


class Publisher:
    """Publishes token deltas on one token stream."""

    def __init__(self, tokens: TokenStream) -> None:
        self._tokens = tokens
        self._new: list[job_pb2.OperationTokens] = []
        self._has_work = asyncio.Event()
        self._so_far: defaultdict[str, dict[int, sampling_pb2.SampledPiece]] = defaultdict(dict)
        """All tokens so far, by operation and sequence."""

        self._again: set[str] = set()

    def add(self, deltas: Iterable[TokenDelta]) -> None:
        """Leaves token deltas to `run`."""
        for delta in deltas:
            piece = to_sampled_piece(delta)
            self._new.append(job_pb2.OperationTokens(operation=delta.name, pieces=[piece]))
            self._keep(delta.name, piece)
        if self._new:
            self._has_work.set()

    def publish_again(self, operation: str) -> None:
        """Publishes all that an operation has so far, before what comes next."""
        self._again.add(operation)
        self._has_work.set()

    def forget(self, operation: str) -> None:
        """Drops what is kept of an operation that has ended."""
        self._so_far.pop(operation, None)

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            new, self._new = self._new, []
            again, self._again = self._again, set()
            messages = [job_pb2.StreamedTokens(operations=new)] if new else []
            for operation in again & self._so_far.keys():
                messages += _messages(operation, self._so_far[operation].values())
            try:
                for message in messages:
                    await self._tokens.publish(message)
            except TRANSIENT_ERRORS as error:
                _log.warning("streamed tokens not published; the results contain them", error=str(error))

    def _keep(self, operation: str, piece: sampling_pb2.SampledPiece) -> None:
        kept = self._so_far[operation].setdefault(piece.sequence_index, sampling_pb2.SampledPiece())
        kept.sequence_index = piece.sequence_index
        kept.tokens.extend(piece.tokens)
        kept.logprobs.extend(piece.logprobs)
        kept.stop_reason = piece.stop_reason


def _messages(operation: str, pieces: Iterable[sampling_pb2.SampledPiece]) -> Iterator[job_pb2.StreamedTokens]:
    """Pieces of one operation in messages of bounded size; one piece is never divided."""
    message, size = job_pb2.StreamedTokens(), 0
    for piece in pieces:
        size += piece.ByteSize()
        message.operations.add(operation=operation, pieces=[piece])
        if size >= _MESSAGE_BYTES:
            yield message
            message, size = job_pb2.StreamedTokens(), 0
    if size:
        yield message
