"""Revoked API keys in one gateway: what their callers have open ends, and so does the work of tenants without a key.

One reader of the stream of revocations per process, for any number of open calls. After an outage of Redis all keys in
use are looked up again, so none is missed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from services.core.catalog.api_keys import digest_of, unknown_key
from services.core.catalog.tenant_work import TenantWork
from services.core.queue import keyspace, streams
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection

_log = structlog.get_logger(__name__)


class OpenCall:
    """A call that ends with its key: the task that handles it."""

    def __init__(self, calls: defaultdict[str, set[OpenCall]]) -> None:
        self._calls = calls
        self._task = asyncio.current_task()
        self._digest = ""
        self.is_revoked = False

    def uses(self, key: str) -> None:
        """Says which key it is, before the key is looked up."""
        self._digest = digest_of(key)
        self._calls[self._digest].add(self)

    def end(self) -> None:
        """Ends the call: its key was revoked."""
        self.is_revoked = True
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Forgets the call, which has ended."""
        if calls := self._calls.get(self._digest):
            calls.discard(self)
            if not calls:
                del self._calls[self._digest]


class Revocations:
    """Ends open calls of one gateway, and work, when keys are revoked."""

    def __init__(self, connection: RedisConnection, work: TenantWork) -> None:
        self._connection = connection
        self._work = work
        self._calls: defaultdict[str, set[OpenCall]] = defaultdict(set)
        self._ending: set[asyncio.Task[None]] = set()

    @contextmanager
    def open_call(self) -> Iterator[OpenCall]:
        """A call that the current task handles inside the block.

        Raises:
            UnauthenticatedError: its key was revoked meanwhile.
        """
        call = OpenCall(self._calls)
        try:
            yield call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not call.is_revoked or task is None:
                raise
            task.uncancel()
            raise unknown_key() from None
        finally:
            call.close()

    async def start(self) -> str:
        """Connects; returns the position to run from. Keys that are revoked after this are noticed."""
        return await streams.last_id(self._connection.commands, keyspace.REVOCATIONS)

    async def run(self, position: str) -> None:
        """Reads revocations for ever, from `position` on."""
        while True:
            try:
                if not position:
                    position = await self.start()
                    await self._end_unknown()
                entries = await streams.read(
                    self._connection.blocking, {keyspace.REVOCATIONS: position}, count=100, block_ms=10_000
                )
            except TRANSIENT_ERRORS as error:
                _log.warning("revocations cannot be read, trying again", error=str(error))
                position = ""
                await asyncio.sleep(0.2)
                continue
            for entry in entries:
                position = entry.entry_id
                self._end(entry.fields[b"digest"].decode())
                if entry.fields[b"last"] == b"1":
                    self._end_work(entry.fields[b"tenant"].decode())

    async def _end_unknown(self) -> None:
        """Ends the calls whose key was revoked unnoticed."""
        pipeline = self._connection.commands.pipeline(transaction=False)
        digests = list(self._calls)
        for digest in digests:
            pipeline.exists(keyspace.api_key(digest))
        for digest, exists in zip(digests, await pipeline.execute(), strict=True):
            if not exists:
                self._end(digest)

    def _end(self, digest: str) -> None:
        for call in list(self._calls.get(digest, ())):
            call.end()

    def _end_work(self, tenant: str) -> None:
        ending = asyncio.create_task(self._work.end(tenant))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
