"""API keys: the secret that a caller sends, and the tenant that it stands for.

A key is `tml-` and 43 random characters. Only its SHA-256 is stored, which is enough against guessing because the key
itself is 256 random bits. Each key belongs to one tenant; a tenant may have many.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from services.core.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
    quoted,
)
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection

KEY_PREFIX = "tml-"
_KEY = re.compile(r"tml-[\x21-\x7e]{8,200}", re.ASCII)
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class ApiKey:
    """Record of an API key; the key itself is not stored."""

    key_id: str
    tenant: str
    label: str
    create_time: datetime


class ApiKeys:
    """Keys of one Redis server."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._commands = connection.commands

    async def create(self, tenant: str, label: str = "", key: str | None = None) -> tuple[str, ApiKey]:
        """Creates a key for a tenant, or registers the given one; returns the key, which is never shown again.

        Raises:
            InvalidArgumentError: the tenant's name or the given key has the wrong form.
            AlreadyExistsError: the given key belongs to a tenant already.
        """
        if not _TENANT.fullmatch(tenant):
            raise InvalidArgumentError.must_be("tenant", "1 to 64 characters of [A-Za-z0-9._-]", quoted(tenant))
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidArgumentError.must_be("key", "'tml-' and 8 to 200 printable ASCII characters")
        key = key or KEY_PREFIX + secrets.token_urlsafe(32)
        digest = digest_of(key)
        made = ApiKey(digest[:12], tenant, label, datetime.now(UTC))
        record = {"key_id": made.key_id, "tenant": tenant, "label": label, "time": time.time()}
        if await self._commands.exists(keyspace.api_key(digest)):
            raise AlreadyExistsError(f"this key exists already, as {made.key_id}")
        pipeline = self._commands.pipeline(transaction=True)
        pipeline.hset(keyspace.API_KEYS, made.key_id, digest)
        pipeline.hset(keyspace.api_key(digest), mapping=record)
        pipeline.srem(keyspace.KEYLESS_TENANTS, tenant)
        await pipeline.execute()
        return key, made

    async def tenant_of(self, key: str) -> str:
        """The tenant that a key belongs to.

        Raises:
            UnauthenticatedError: the key is unknown or revoked.
        """
        tenant: bytes | None = await self._commands.hget(keyspace.api_key(digest_of(key)), "tenant")
        if tenant is None:
            raise unknown_key()
        return tenant.decode()

    async def record(self, key: str) -> ApiKey:
        """The record of a key; raises as `tenant_of`."""
        record = await self._commands.hgetall(keyspace.api_key(digest_of(key)))
        if not record:
            raise unknown_key()
        return _api_key(record)

    async def list(self) -> list[ApiKey]:
        """All keys, oldest first."""
        digests = [digest.decode() for digest in await self._commands.hvals(keyspace.API_KEYS)]
        records = [await self._commands.hgetall(keyspace.api_key(digest)) for digest in digests]
        keys = [_api_key(record) for record in records if record]
        return sorted(keys, key=lambda key: key.create_time)

    async def revoke(self, key_id: str) -> None:
        """Makes a key unusable at once; what its callers have open ends, and work of a tenant without another key.

        Raises:
            NotFoundError: there is no key of this id.
        """
        keys = [keyspace.API_KEYS, keyspace.REVOCATIONS, keyspace.KEYLESS_TENANTS]
        if await self._connection.run("revoke_key", keys, [key_id, keyspace.api_key("")]) is None:
            raise NotFoundError(f"there is no key {key_id!r}; `tinker-platform keys list` shows them")

    async def tenants(self) -> set[str]:
        """All tenants that have a key, or had one."""
        keyless = await self._commands.smembers(keyspace.KEYLESS_TENANTS)
        return {key.tenant for key in await self.list()} | {tenant.decode() for tenant in keyless}

    async def has_key(self, tenant: str) -> bool:
        """Whether a tenant's last key has not been revoked."""
        return not await self._commands.sismember(keyspace.KEYLESS_TENANTS, tenant)


def _api_key(record: Mapping[bytes, bytes]) -> ApiKey:
    return ApiKey(
        key_id=record[b"key_id"].decode(),
        tenant=record[b"tenant"].decode(),
        label=record[b"label"].decode(),
        create_time=datetime.fromtimestamp(float(record[b"time"]), UTC),
    )


def unknown_key() -> UnauthenticatedError:
    """The error of a call whose key is unknown or revoked, or was revoked while it lasted."""
    message = "this API key is unknown or revoked; `tinker-platform keys create` on the server makes one"
    return UnauthenticatedError(message, reason="UNKNOWN_API_KEY")


def digest_of(key: str) -> str:
    """The SHA-256 of a key, by which it is stored."""
    return hashlib.sha256(key.encode()).hexdigest()
