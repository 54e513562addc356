"""The first bytes of a body that is refused: enough to see what it is about, and no more."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

START_BYTES = 64 << 10
WAIT_S = 1.0
"""How long the first bytes of a body that is not read otherwise are waited for."""


def start_of(content: bytes | bytearray, encoding: str) -> bytes:
    """The first bytes of a body that has arrived in part, decompressed."""
    if encoding != "zstd":
        return bytes(content[:START_BYTES])
    try:
        return zstd.ZstdDecompressor().decompress(bytes(content), max_length=START_BYTES)
    except zstd.ZstdError:
        return b""


async def start_of_body(request: Request, enough: Callable[[bytes], bool]) -> bytes:
    """The first bytes of a body that nobody has begun to read, decompressed: until they are enough, or no more come."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    arrived = bytearray()
    try:
        async with asyncio.timeout(WAIT_S):
            async for piece in request.stream():
                arrived += piece
                if len(arrived) >= START_BYTES or enough(start_of(arrived, encoding)):
                    break
    except (TimeoutError, ClientDisconnect):
        pass
    return start_of(arrived, encoding)
