"""The two Redis clients of a process, and its scripts.

`commands` retries through a restart of the server, which makes every command at-least-once: each state change is
therefore one idempotent script. Neither has a socket timeout: a blocking read may take long, and with a timeout,
redis-py writes under `asyncio.wait_for`, which before Python 3.12 can lose a cancellation, so that a loop would not
end. Instead, TCP keepalive of the kernel detects a server that disappears silently.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
)

from services.core.queue import keyspace
from services.core.retention import KEEP_SESSIONS

TRANSIENT_ERRORS = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError)

CONNECT_TIMEOUT_S = 10
_DEAD_AFTER_S = 30

# A silent connection is probed after 10 s, and closed when nothing is acknowledged for `_DEAD_AFTER_S`.
_KEEPALIVE = {
    option: value
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", _DEAD_AFTER_S * 1000),
    )
    if (option := getattr(socket, name, None)) is not None  # not on every system
}

Write = Sequence[str | bytes | int]
"""One Redis command, word by word, that becomes visible together with a result."""

POOL_TIMEOUT_S = 30.0
"""Maximum wait of a command for a free connection of the pool."""

SERVICE_ATTEMPTS = 40
"""Attempts of a service's command, over about 15 s: a restart of the server passes unnoticed."""

OPERATOR_ATTEMPTS = 5
"""Attempts where a person waits at a terminal, over about a second."""


@dataclass(frozen=True)
class RedisConnection:
    """Clients of one Redis or Valkey server; replies are bytes.

    redis-py types every reply as text or bytes or both, so the clients are untyped here and replies are typed where
    they are decoded.
    """

    commands: Any
    blocking: Any
    scripts: Mapping[str, AsyncScript]

    @classmethod
    def open(cls, url: str, attempts: int = SERVICE_ATTEMPTS) -> RedisConnection:
        """Creates the clients; they connect at their first use. A command is tried again `attempts` times."""
        options: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": CONNECT_TIMEOUT_S}
        if not url.startswith("unix:"):
            options |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
        pool = aioredis.BlockingConnectionPool.from_url(
            url, max_connections=256, timeout=POOL_TIMEOUT_S, retry=_retry(attempts), **options
        )
        commands = aioredis.Redis.from_pool(pool)
        blocking = aioredis.Redis.from_url(url, max_connections=64, retry=_retry(attempts=0), **options)
        sources = {
            source.name: source.read_text() for source in (resources.files("services.core.queue") / "lua").iterdir()
        }
        keep_sessions_ms = KEEP_SESSIONS // timedelta(milliseconds=1)
        constants = f"local EVENTS_KEPT = {keyspace.EVENTS_KEPT}\nlocal KEEP_SESSIONS_MS = {keep_sessions_ms}\n"
        prelude = constants + sources.pop("prelude.lua")
        scripts = {
            name.removesuffix(".lua"): commands.register_script(prelude + source) for name, source in sources.items()
        }
        return cls(commands=commands, blocking=blocking, scripts=scripts)

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        """Runs `lua/<script>.lua` and returns its reply.

        A server that does not know the script gets it with the call: one loaded beforehand could be flushed again.
        """
        registered = self.scripts[script]
        try:
            return await self.commands.evalsha(registered.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.commands.eval(registered.script, len(keys), *keys, *arguments)

    async def close(self) -> None:
        """Closes all connections."""
        await self.blocking.aclose()
        await self.commands.aclose()


def _retry(attempts: int) -> Retry:
    backoff = ExponentialWithJitterBackoff(base=0.05, cap=0.5)
    return Retry(backoff, attempts, supported_errors=TRANSIENT_ERRORS)
