"""Token stream: new tokens of streamed operations, from samplers to the gateways that relay them.

All share one channel: a sampler publishes the tokens of its last steps, and every gateway keeps those that it has
listeners for. Nothing is stored and a message may be lost, e.g. while Redis restarts: each token delta has its offset,
and the operation's result has all tokens. Deltas that a slow listener has not fetched are joined, so they never take
more memory than the result.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from services.core.queue import keyspace, streams
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

_log = structlog.get_logger(__name__)


class TokenListener:
    """New tokens of one operation, without a repeat and without a gap.

    Args:
        received: how many tokens of each sequence the caller has; a sequence that it does not name begins where its
            next token delta does.
    """

    def __init__(self, received: Sequence[int] = ()) -> None:
        self._pieces: dict[int, sampling_pb2.SampledPiece] = {}
        self._ends = dict(enumerate(received))
        """How many tokens of each sequence the caller has, those in `_pieces` included."""

        self._changed = asyncio.Event()

    async def next_pieces(self) -> list[sampling_pb2.SampledPiece]:
        """Waits for new tokens; returns at most one token delta a sequence."""
        await self._changed.wait()
        self._changed.clear()
        pieces, self._pieces = list(self._pieces.values()), {}
        return pieces

    def add(self, pieces: Iterable[sampling_pb2.SampledPiece]) -> None:
        """Adds new tokens. A delta after a lost one is dropped: the result will fill the gap."""
        for piece in pieces:
            index, end = piece.sequence_index, piece.start + len(piece.tokens)
            known = self._ends.setdefault(index, piece.start) - piece.start
            if not 0 <= known < len(piece.tokens):
                continue
            waiting = self._pieces.get(index)
            if waiting is None:
                waiting = sampling_pb2.SampledPiece(sequence_index=index, start=piece.start + known)
                self._pieces[index] = waiting
            waiting.tokens.extend(piece.tokens[known:])
            waiting.logprobs.extend(piece.logprobs[known:])
            waiting.stop_reason = piece.stop_reason
            self._ends[index] = end
            self._changed.set()


class TokenStream:
    """The channel of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._listeners: defaultdict[str, set[TokenListener]] = defaultdict(set)

    @property
    def operations(self) -> frozenset[str]:
        """Names of the operations that have listeners."""
        return frozenset(self._listeners)

    async def publish(self, tokens: job_pb2.StreamedTokens) -> None:
        """Publishes tokens to all listeners."""
        await self._connection.commands.publish(keyspace.TOKENS, tokens.SerializeToString())

    async def join(self, operation: str, reader: str) -> None:
        """Notes who reads an operation's tokens, in place of who has read them."""
        await self._connection.run("join_stream", [keyspace.operation(operation)], [reader])

    async def ask_again(self, operation: str) -> None:
        """Asks the sampler of an operation to publish all tokens so far again."""
        await self._connection.commands.xadd(keyspace.TOKENS_AGAIN, {"operation": operation}, maxlen=1000)

    async def asked_position(self) -> str:
        """Id of the newest entry that `ask_again` has made."""
        return await streams.last_id(self._connection.commands, keyspace.TOKENS_AGAIN)

    async def asked_after(self, position: str) -> tuple[str, list[str]]:
        """Waits for operations whose tokens are wanted again; returns the new position and their names."""
        entries = await streams.read(
            self._connection.blocking, {keyspace.TOKENS_AGAIN: position}, count=1000, block_ms=10_000
        )
        return entries[-1].entry_id if entries else position, [entry.fields[b"operation"].decode() for entry in entries]

    @contextmanager
    def listen(self, operation: str, received: Sequence[int] = ()) -> Iterator[TokenListener]:
        """Registers a listener for the tokens that are published from now on; `received` as for TokenListener."""
        listener = TokenListener(received)
        self._listeners[operation].add(listener)
        try:
            yield listener
        finally:
            self._listeners[operation].discard(listener)
            if not self._listeners[operation]:
                del self._listeners[operation]

    async def run(self) -> None:
        """Reads the channel for ever."""
        while True:
            channel = self._connection.blocking.pubsub(ignore_subscribe_messages=True)
            try:
                await channel.subscribe(keyspace.TOKENS)
                async for message in channel.listen():
                    self._distribute(message)
            except TRANSIENT_ERRORS as error:
                _log.warning("token channel lost, reconnecting", error=str(error))
                await asyncio.sleep(0.2)
            finally:
                await channel.aclose()

    def _distribute(self, message: dict[str, Any]) -> None:
        for tokens in job_pb2.StreamedTokens.FromString(message["data"]).operations:
            for listener in self._listeners.get(tokens.operation, ()):
                listener.add(tokens.pieces)
