"""Traces of sessions: what its operations waited for a worker and how long each was carried out, for Perfetto.

A trace is a file of Chrome's trace event format, written as it is downloaded. A link to it works without a key.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from services.core.catalog.api_keys import unknown_key
from services.core.catalog.download_links import DownloadLink
from services.core.errors import NotFoundError
from services.core.queue.operation_times import OperationTimes
from services.gateway.http.backend import Backend
from services.gateway.http.sdk.downloads import VALID
from tinker_proto.v1 import session_pb2

_TRACE = "trace:"
"""In a link before the session; links to checkpoints have a tinker path there."""


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    sessions, links = backend.stores.sessions, backend.stores.download_links

    async def export(request: Request) -> Response:
        """A link to the trace of a session."""
        tenant = await backend.tenant(request)
        session = await sessions.get(request.path_params["session"], tenant)
        token = await links.sign(DownloadLink(_TRACE + session.session_id, tenant, datetime.now(UTC) + VALID))
        return JSONResponse({"status": "ready", "url": str(request.url_for("trace", token=token)), "error": None})

    async def trace(request: Request) -> Response:
        """What a link leads to."""
        link = await links.verify(request.path_params["token"])
        if not link.tinker_path.startswith(_TRACE):
            raise NotFoundError("this link is not one to a trace", reason="FILE_NOT_FOUND")
        if not await backend.stores.api_keys.has_key(link.tenant):
            raise unknown_key()
        session = await sessions.get(link.tinker_path.removeprefix(_TRACE), link.tenant)
        return StreamingResponse(_file(backend, session), media_type="application/json")

    return [
        Route("/sessions/{session}/trace_export", export),
        Route("/traces/{token}", trace, name="trace"),
    ]


async def _file(backend: Backend, session: session_pb2.Session) -> AsyncIterator[bytes]:
    processes: dict[str, int] = {}
    opened = session.create_time.ToDatetime(UTC)
    head = {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": f"session {session.session_id}"}}
    yield b'{"displayTimeUnit": "ms", "traceEvents": [\n' + json.dumps(head).encode()
    async for some in backend.stores.finished.times(session.session_id, opened):
        events = [event for times in some for event in _events(times, processes)]
        if events:
            yield b"".join(b",\n" + json.dumps(event).encode() for event in events)
    yield b"\n]}\n"


def _events(times: OperationTimes, processes: dict[str, int]) -> Iterator[dict[str, object]]:
    """The spans of one operation; each run and each sampling session is a process of the trace."""
    scope = times.name.scope
    if scope not in processes:
        processes[scope] = len(processes) + 1
        yield {"name": "process_name", "ph": "M", "pid": processes[scope], "args": {"name": scope}}
    begun_ms = times.ended_ms if times.begun_ms is None else times.begun_ms
    spans = [("queue", times.accepted_ms, begun_ms), ("pass", begun_ms, times.ended_ms)]
    for category, start_ms, end_ms in spans:
        if category == "pass" and times.begun_ms is None:
            continue
        span = {"cat": category, "name": f"{times.method} ({category})", "id": str(times.name), "pid": processes[scope]}
        arguments = {"operation": str(times.name), "state": times.state}
        yield {**span, "ph": "b", "tid": 0, "ts": start_ms * 1000, "args": arguments}
        yield {**span, "ph": "e", "tid": 0, "ts": max(start_ms, end_ms) * 1000}
