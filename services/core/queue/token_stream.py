"""Token stream: new tokens of streamed operations, from samplers to the gateways that relay them.

All share one channel: a sampler publishes the tokens of its last steps, and every gateway keeps those that it has
listeners for. Nothing is stored and a message may be lost, e.g. while Redis restarts: each token delta has its offset,
and the operation's result has all tokens. Deltas that a slow listener has not fetched are joined, so they never take
more memory than the result.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from services.core.queue import keyspace
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

_log = structlog.get_logger(__name__)


class TokenListener:
    """New tokens of one operation."""

    def __init__(self) -> None:
        self._pieces: dict[int, sampling_pb2.SampledPiece] = {}
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
            waiting = self._pieces.get(piece.sequence_index)
            if waiting is None:
                self._pieces[piece.sequence_index] = own = sampling_pb2.SampledPiece()
                own.CopyFrom(piece)
            elif waiting.start + len(waiting.tokens) == piece.start:
                waiting.tokens.extend(piece.tokens)
                waiting.logprobs.extend(piece.logprobs)
                waiting.stop_reason = piece.stop_reason
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

    @contextmanager
    def listen(self, operation: str) -> Iterator[TokenListener]:
        """Registers a listener for the tokens that are published from now on."""
        listener = TokenListener()
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
