"""Download links: signed, need no API key, and expire.

The secret is drawn once and kept in Redis, so that a link made by one gateway is honoured by all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from services.core.errors import NotFoundError
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection


@dataclass(frozen=True)
class DownloadLink:
    """Permission to read one checkpoint as one tenant until a time."""

    tinker_path: str
    tenant: str
    expires: datetime


class DownloadLinks:
    """Signs links with the secret of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._commands = connection.commands

    async def sign(self, link: DownloadLink) -> str:
        """The token that stands for a link, fit for a URL."""
        content = json.dumps([link.tinker_path, link.tenant, link.expires.timestamp()]).encode()
        return _text(content) + "." + _text(await self._signature(content))

    async def verify(self, token: str) -> DownloadLink:
        """The link that a token stands for.

        Raises:
            NotFoundError: the token is not valid, or has expired.
        """
        try:
            content, signature = (base64.b64decode(part + "==", altchars=b"-_") for part in token.split("."))
        except (binascii.Error, ValueError):
            raise _unknown() from None
        if not hmac.compare_digest(signature, await self._signature(content)):
            raise _unknown()
        tinker_path, tenant, expires = json.loads(content)
        link = DownloadLink(tinker_path, tenant, datetime.fromtimestamp(expires, UTC))
        if link.expires < datetime.now(UTC):
            raise _unknown()
        return link

    async def _signature(self, content: bytes) -> bytes:
        await self._commands.setnx(keyspace.DOWNLOAD_SECRET, secrets.token_bytes(32))
        secret: bytes = await self._commands.get(keyspace.DOWNLOAD_SECRET)
        return hmac.digest(secret, content, hashlib.sha256)


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _unknown() -> NotFoundError:
    return NotFoundError("this download link is unknown or has expired; ask for a new one", reason="LINK_EXPIRED")
