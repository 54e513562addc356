"""Tokens of streamed jobs on their way to whoever listens, so that no step waits for Redis.

Tokens of several steps go together when Redis is slower than the engine. What is lost on the way is in the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from services.core.queue.connection import TRANSIENT_ERRORS
from services.core.queue.token_stream import TokenStream
from services.sampler.convert import to_piece
from services.sampler.request import Piece
from tinker_proto.internal.v1 import job_pb2

_log = structlog.get_logger(__name__)


class Publisher:
    """Publishes pieces on one token stream."""

    def __init__(self, tokens: TokenStream) -> None:
        self._tokens = tokens
        self._pieces: list[Piece] = []
        self._has_pieces = asyncio.Event()

    def add(self, pieces: Iterable[Piece]) -> None:
        """Leaves pieces to `run`."""
        self._pieces += pieces
        if self._pieces:
            self._has_pieces.set()

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._has_pieces.wait()
            self._has_pieces.clear()
            pieces, self._pieces = self._pieces, []
            tokens = job_pb2.StreamedTokens()
            for piece in pieces:
                tokens.operations.add(operation=piece.name, pieces=[to_piece(piece)])
            try:
                await self._tokens.publish(tokens)
            except TRANSIENT_ERRORS as error:
                _log.warning("tokens lost on their way, their results will have them", error=str(error))
