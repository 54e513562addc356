"""Search of a tenant's sessions, newest first.

Every session belongs to its tenant, so `own` and `accessible` mean the same, and a user is named by the tenant.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.catalog.pages import Cursor, PageRequest
from services.core.catalog.sessions import GRACE
from services.gateway.http.backend import Backend
from services.gateway.http.body import Fields, read_json, takes
from services.gateway.http.sdk.fields import SdkFields
from services.gateway.http.sdk.session_labels import DISPLAY_NAME, PROJECT, own_labels
from tinker_proto.v1 import session_pb2

_AT_ONCE = 500

FinishType = Literal["success", "errored", "interrupted"]


class Owner(Fields):
    """Whose sessions."""

    type: Literal["own", "accessible", "user"]
    owner_urns: list[str] | None = Field(default=None, min_length=1, max_length=10)


class Status(Fields):
    """A status, and the reasons of one that the client has reported."""

    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[FinishType] | None = Field(default=None, min_length=1)


class SearchCursor(Fields):
    """The session that the page before ended with."""

    last_created_at: AwareDatetime
    last_session_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,100}$")]


class Search(SdkFields):
    """POST sessions/search."""

    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = Field(default=None, min_length=1)
    owner: Owner = Owner(type="own")
    statuses: list[Status] | None = Field(default=None, min_length=1)
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SearchCursor | None = None

    def finds(self, session: session_pb2.Session, status: Mapping[str, Any] | None, tenant: str) -> bool:
        """Whether a session of `tenant` matches."""
        labels = session.user_metadata
        if self.owner.type == "user" and tenant not in (self.owner.owner_urns or ()):
            return False
        if self.project_ids is not None and labels.get(PROJECT) not in self.project_ids:
            return False
        if any(own_labels(labels).get(name) != value for name, value in self.user_metadata.items()):
            return False
        return self._finds_name(session) and self._finds_status(status)

    def _finds_name(self, session: session_pb2.Session) -> bool:
        if self.session_id is None and self.display_name is None:
            return True
        name = session.user_metadata.get(DISPLAY_NAME, "").casefold()
        words = (self.display_name or "").casefold().split()
        return session.session_id == self.session_id or (bool(words) and all(word in name for word in words))

    def _finds_status(self, status: Mapping[str, Any] | None) -> bool:
        if self.statuses is None:
            return True
        return status is not None and any(
            wanted.type == status["type"]
            and (wanted.reasons is None or status.get("reason", {}).get("type") in wanted.reasons)
            for wanted in self.statuses
        )


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    sessions = backend.stores.sessions

    @takes(Search)
    async def search(request: Request) -> Response:
        """A page of the sessions that match."""
        tenant = await backend.tenant(request)
        wanted = await read_json(request, Search)
        found: list[tuple[session_pb2.Session, Mapping[str, Any] | None]] = []
        after = _position(wanted.cursor)
        more = True
        while more and len(found) <= wanted.limit:
            entries, page = await sessions.page(tenant, PageRequest(_AT_ONCE, after))
            after = Cursor.parse(page.next_page_token)
            more = after is not None
            finishes = await sessions.finishes([session.session_id for session in entries])
            statuses = [_status(*both) for both in zip(entries, finishes, strict=True)]
            found += [both for both in zip(entries, statuses, strict=True) if wanted.finds(*both, tenant)]
        shown = found[: wanted.limit]
        counts, sizes = await _checkpoints(tenant)
        summaries = [_summary(session, status, tenant, counts, sizes) for session, status in shown]
        cursor = None
        if len(found) > len(shown):
            last = shown[-1][0]
            cursor = {"last_created_at": last.create_time.ToJsonString(), "last_session_id": last.session_id}
        return JSONResponse({"sessions": summaries, "next_cursor": cursor})

    async def _checkpoints(tenant: str) -> tuple[Counter[str], Counter[str]]:
        """Number and bytes of the stored checkpoints of a tenant, by session."""
        counts, sizes = Counter[str](), Counter[str]()
        for location, size in (await backend.stores.catalog.checkpoints.stored_sizes(tenant)).items():
            session_id = location.partition(":")[0]
            counts[session_id] += 1
            sizes[session_id] += size
        return counts, sizes

    return [Route("/sessions/search", search, methods=["POST"])]


def _position(cursor: SearchCursor | None) -> Cursor | None:
    if cursor is None:
        return None
    created_ms = round(cursor.last_created_at.timestamp() * 1000)
    return Cursor(f"{max(created_ms, 0) / 1000:.3f}", cursor.last_session_id)


def _status(session: session_pb2.Session, finish: str) -> Mapping[str, Any] | None:
    """How a session stands; None if it has neither ended nor was seen lately."""
    if session.HasField("end_time"):
        said = json.loads(finish) if finish else {}
        reason = {"type": said.get("type", "success")}
        return {"type": "client_finished", "reason": reason, "detail": said.get("detail")}
    silent = datetime.now(UTC) - session.last_seen_time.ToDatetime(UTC)
    return {"type": "active"} if silent < GRACE else None


def _summary(
    session: session_pb2.Session,
    status: Mapping[str, Any] | None,
    tenant: str,
    counts: Mapping[str, int],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    labels = session.user_metadata
    return {
        "session_id": session.session_id,
        "created_at": session.create_time.ToJsonString(),
        "owner": tenant,
        "project_id": labels.get(PROJECT, ""),
        "status": status,
        "checkpoints_count": counts[session.session_id],
        "display_name": labels.get(DISPLAY_NAME),
        "user_metadata": own_labels(labels) or None,
        "checkpoint_storage_bytes": sizes[session.session_id],
    }
