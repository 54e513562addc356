"""Sessions: one per client process, alive while its client is seen.

The runs of a session that has ended, or was silent for `GRACE`, need not stay in a trainer's memory. They are not lost:
a run is rebuilt from its snapshot and log at its next operation. A session's record goes `KEEP_SESSIONS` (retention.py)
after its end or its last sign of life, or when its tenant has made as many others as may be open.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from services.core.catalog.pages import Page, PageRequest, read_page
from services.core.config import GatewaySettings
from services.core.errors import FailedPreconditionError, NotFoundError, ResourceExhaustedError
from services.core.names import new_session_id
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tinker_proto.v1 import session_pb2

GRACE = timedelta(minutes=10)
_AT_ONCE = 500
RETRY_AFTER_S = 5.0


class Sessions:
    """Sessions of one Redis server."""

    def __init__(self, connection: RedisConnection, settings: GatewaySettings | None = None) -> None:
        """
        Args:
            connection: to the Redis server.
            settings: with the limits of `create`; None for a process that creates no sessions.
        """
        self._connection = connection
        self._commands = connection.commands
        self._limits = (settings.max_sessions_per_tenant, settings.max_sessions) if settings is not None else (0, 0)

    async def create(self, tenant: str, user_metadata: Mapping[str, str]) -> session_pb2.Session:
        """Opens a session.

        Raises:
            ResourceExhaustedError: the limit of open sessions is reached.
        """
        session_id = new_session_id()
        keys = [
            keyspace.session(session_id),
            keyspace.tenant_sessions(tenant),
            keyspace.OPEN_SESSIONS,
            keyspace.open_sessions(tenant),
        ]
        arguments: list[str | bytes | int] = [keyspace.PREFIX, session_id, tenant, json.dumps(dict(user_metadata))]
        arguments += [GRACE // timedelta(milliseconds=1), *self._limits]
        reply = await self._connection.run("open_session", keys, arguments)
        if reply[0] == b"full":
            owner = f"tenant {tenant}" if reply[1] else "the platform"
            message = (
                f"{owner} already has {int(reply[2])} open sessions (limit {int(reply[3])}); end one, or retry later"
            )
            raise ResourceExhaustedError(message, reason="TOO_MANY_SESSIONS", retry_after_s=RETRY_AFTER_S)
        return await self.get(session_id, tenant)

    async def get(self, session_id: str, tenant: str) -> session_pb2.Session:
        """A session of `tenant`.

        Raises:
            NotFoundError: there is none of this id, or it is another tenant's.
        """
        record = await self._commands.hgetall(keyspace.session(session_id))
        if record.get(b"tenant") != tenant.encode():
            raise NotFoundError(f"there is no session {session_id[:100]!r}", reason="SESSION_NOT_FOUND")
        return _session(session_id, record)

    async def get_with_contents(self, session_id: str, tenant: str) -> session_pb2.Session:
        """A session with the ids of its runs and sampling sessions; raises as `get`."""
        session = await self.get(session_id, tenant)
        pipeline = self._commands.pipeline(transaction=False)
        pipeline.zrange(keyspace.session_runs(session_id), 0, -1)
        pipeline.zrange(keyspace.session_samplings(session_id), 0, -1)
        runs, samplings = await pipeline.execute()
        session.training_run_ids.extend(name.decode() for name in runs)
        session.sampling_session_ids.extend(name.decode() for name in samplings)
        return session

    async def page(self, tenant: str, wanted: PageRequest) -> tuple[list[session_pb2.Session], Page]:
        """A page of a tenant's sessions."""
        page = await read_page(self._connection, keyspace.tenant_sessions(tenant), wanted)
        pipeline = self._commands.pipeline(transaction=False)
        for name in page.names:
            pipeline.hgetall(keyspace.session(name))
        records = await pipeline.execute()
        return [_session(name, record) for name, record in zip(page.names, records, strict=True) if record], page

    async def open(self, session_id: str, tenant: str) -> session_pb2.Session:
        """A session of `tenant` that has not ended.

        Raises:
            NotFoundError: as `get`.
            FailedPreconditionError: it has ended.
        """
        session = await self.get(session_id, tenant)
        if session.HasField("end_time"):
            raise _ended(session_id)
        return session

    async def check_not_ended(self, session_id: str) -> None:
        """Refuses new work of a session that its client has ended.

        Raises:
            FailedPreconditionError: it has ended, and its record is still kept.
        """
        if await self._commands.hexists(keyspace.session(session_id), "ended"):
            raise _ended(session_id)

    async def touch(self, session_id: str) -> None:
        """Records that the session's client was seen."""
        await self._connection.run("touch_session", [keyspace.session(session_id)], [keyspace.PREFIX, session_id])

    async def end(self, session_id: str, tenant: str, finish: str = "") -> None:
        """Ends a session of `tenant`; ending it again keeps the first time, and what the client said about it."""
        keys = [keyspace.session(session_id), keyspace.OPEN_SESSIONS, keyspace.open_sessions(tenant)]
        await self._connection.run("end_session", keys, [session_id, finish])

    async def finishes(self, session_ids: Sequence[str]) -> list[str]:
        """What clients said about the ends of sessions; "" where nothing is known."""
        pipeline = self._commands.pipeline(transaction=False)
        for session_id in session_ids:
            pipeline.hget(keyspace.session(session_id), "finish")
        return [(finish or b"").decode() for finish in await pipeline.execute()]

    async def forget_old(self, tenants: Iterable[str]) -> None:
        """Removes sessions of these tenants that ended, or were last seen, long ago; their runs stay."""
        for tenant in tenants:
            key = keyspace.tenant_sessions(tenant)
            names = [name.decode() for name in await self._commands.zrange(key, 0, -1)]
            for start in range(0, len(names), _AT_ONCE):
                some = names[start : start + _AT_ONCE]
                await self._connection.run("forget_sessions", [key], [keyspace.PREFIX, tenant, *some])

    async def is_alive(self, session_id: str) -> bool:
        """Whether the session has not ended and was seen within `GRACE`."""
        seen, ended = await self._commands.hmget(keyspace.session(session_id), "seen", "ended")
        return seen is not None and ended is None and time.time() - float(seen) < GRACE.total_seconds()


def _ended(session_id: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"session {session_id} has ended; open a new one", reason="SESSION_ENDED")


def _session(session_id: str, record: Mapping[bytes, bytes]) -> session_pb2.Session:
    session = session_pb2.Session(session_id=session_id, user_metadata=json.loads(record[b"metadata"]))
    session.create_time.FromMilliseconds(int(float(record[b"created"]) * 1000))
    session.last_seen_time.FromMilliseconds(int(float(record[b"seen"]) * 1000))
    if b"ended" in record:
        session.end_time.FromMilliseconds(int(float(record[b"ended"]) * 1000))
    return session
