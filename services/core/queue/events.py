"""Event hub: one reader of the event stream per process, for any number of watchers.

The name of each finished operation is published once on a capped stream. The hub reads the stream and forwards each
name to the watchers of its session. After an outage of Redis it closes its watchers: clients open new ones and name
what they still wait for, as they do when they move to another gateway.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from services.core.names import session_of
from services.core.queue import keyspace, streams
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection

_log = structlog.get_logger(__name__)


class Watcher:
    """Names of the finished operations of one session."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._closed = False
        self._changed = asyncio.Event()

    async def next_names(self) -> list[str] | None:
        """Waits for finished operations and returns their names, or None when the watch has been closed."""
        await self._changed.wait()
        self._changed.clear()
        if self._closed:
            return None
        names, self._names = list(self._names), set()
        return names

    def add(self, name: str) -> None:
        """Adds one name."""
        self._names.add(name)
        self._changed.set()

    def close(self) -> None:
        """Ends the watch."""
        self._closed = True
        self._changed.set()


class EventHub:
    """Distributes the names of finished operations to the watchers of their sessions."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._watchers: defaultdict[str, set[Watcher]] = defaultdict(set)
        self._expecting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._shut = False

    @contextmanager
    def watch(self, session_id: str) -> Iterator[Watcher]:
        """Registers a watcher for all operations that finish from now on."""
        watcher = Watcher()
        self._watchers[session_id].add(watcher)
        if self._shut:
            watcher.close()
        try:
            yield watcher
        finally:
            self._watchers[session_id].discard(watcher)
            if not self._watchers[session_id]:
                del self._watchers[session_id]

    @contextmanager
    def expect(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set when the operation finishes, and whenever its record should be looked at again."""
        done = asyncio.Event()
        self._expecting[name].add(done)
        try:
            yield done
        finally:
            self._expecting[name].discard(done)
            if not self._expecting[name]:
                del self._expecting[name]

    @property
    def expected(self) -> frozenset[str]:
        """Names of the operations whose end somebody waits for."""
        return frozenset(self._expecting)

    @property
    def is_shut(self) -> bool:
        """Whether this process is about to stop."""
        return self._shut

    def shut(self) -> None:
        """Ends every watch, and every one that is opened from now on: this process is about to stop."""
        self._shut = True
        self._close_watchers()

    def _close_watchers(self) -> None:
        for watchers in list(self._watchers.values()):
            for watcher in list(watchers):
                watcher.close()
        for expecting in list(self._expecting.values()):
            for done in expecting:
                done.set()

    async def start(self) -> str:
        """Connects; returns the position to run from. Watches opened after this miss nothing."""
        return await streams.last_id(self._connection.commands, keyspace.EVENTS)

    async def run(self, position: str) -> None:
        """Reads events for ever, from `position` on."""
        while True:
            try:
                entries = await streams.read(
                    self._connection.blocking, {keyspace.EVENTS: position}, count=1000, block_ms=10_000
                )
            except TRANSIENT_ERRORS as error:
                _log.warning("event stream lost, reconnecting", error=str(error))
                position = await self._reconnected()
                self._close_watchers()
                continue
            for entry in entries:
                position = entry.entry_id
                name = entry.fields[b"operation"].decode()
                for watcher in self._watchers.get(session_of(name), ()):
                    watcher.add(name)
                for done in self._expecting.get(name, ()):
                    done.set()

    async def _reconnected(self) -> str:
        while True:
            try:
                return await streams.last_id(self._connection.commands, keyspace.EVENTS)
            except TRANSIENT_ERRORS:
                await asyncio.sleep(0.2)
