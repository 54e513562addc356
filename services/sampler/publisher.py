"""The publisher of streamed tokens, apart from the steps, so that no step waits for Redis.

Tokens of several steps go together when Redis is slower than the engine. Tokens that are lost on the way are in the
result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from services.core.queue.connection import TRANSIENT_ERRORS
from services.core.queue.token_stream import TokenStream
from services.sampler.convert import to_sampled_piece
from services.sampler.request import TokenDelta
from tinker_proto.internal.v1 import job_pb2

_log = structlog.get_logger(__name__)


class Publisher:
    """Publishes token deltas on one token stream."""

    def __init__(self, tokens: TokenStream) -> None:
        self._tokens = tokens
        self._deltas: list[TokenDelta] = []
        self._has_deltas = asyncio.Event()

    def add(self, deltas: Iterable[TokenDelta]) -> None:
        """Leaves token deltas to `run`."""
        self._deltas += deltas
        if self._deltas:
            self._has_deltas.set()

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            await self._has_deltas.wait()
            self._has_deltas.clear()
            deltas, self._deltas = self._deltas, []
            tokens = job_pb2.StreamedTokens()
            for delta in deltas:
                tokens.operations.add(operation=delta.name, pieces=[to_sampled_piece(delta)])
            try:
                await self._tokens.publish(tokens)
            except TRANSIENT_ERRORS as error:
                _log.warning("streamed tokens not published; the results contain them", error=str(error))
