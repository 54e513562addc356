"""Sessions: opened, kept alive, finished, and looked up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.errors import FailedPreconditionError, InvalidArgumentError
from services.gateway.http.backend import Backend
from services.gateway.http.body import read_json, takes
from services.gateway.http.errors import error_response
from services.gateway.http.sdk.fields import Metadata, SdkFields
from services.gateway.http.sdk.paging import offset_page, refuse_foreign_scope
from services.gateway.http.sdk.session_labels import DISPLAY_NAME, PROJECT, TAGS, own_labels
from services.gateway.validation.fields import check_metadata

MOST_DETAIL = 1000
"""Characters that are kept of what the SDK says about a session's end."""


class CreateSession(SdkFields):
    """POST create_session."""

    tags: tuple[str, ...] = ()
    user_metadata: Metadata = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


class Heartbeat(SdkFields):
    """POST session_heartbeat."""

    session_id: str


class FinishReason(SdkFields):
    """How a session ended."""

    type: Literal["success", "errored", "interrupted"]


class Finish(SdkFields):
    """POST sessions/{id}/finish."""

    reason: FinishReason
    detail: str | None = None


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    sessions = backend.stores.sessions

    @takes(CreateSession)
    async def create(request: Request) -> Response:
        """Opens a session."""
        tenant = await backend.tenant(request)
        fields = await read_json(request, CreateSession)
        session = await sessions.create(tenant, _labels(fields))
        return JSONResponse({"type": "create_session", "session_id": session.session_id})

    @takes(Heartbeat)
    async def heartbeat(request: Request) -> Response:
        """Says that the client is there."""
        tenant = await backend.tenant(request)
        session_id = (await read_json(request, Heartbeat)).session_id
        try:
            await sessions.open(session_id, tenant)
        except FailedPreconditionError as error:
            return error_response(error, 410)
        await sessions.touch(session_id)
        return JSONResponse({"type": "session_heartbeat"})

    @takes(Finish)
    async def finish(request: Request) -> Response:
        """Ends a session."""
        tenant = await backend.tenant(request)
        fields = await read_json(request, Finish)
        session = await sessions.get(request.path_params["session"], tenant)
        detail = fields.detail[:MOST_DETAIL] if fields.detail else None
        finish = json.dumps({"type": fields.reason.type, "detail": detail})
        await sessions.end(session.session_id, tenant, finish)
        return Response(status_code=204)

    async def get(request: Request) -> Response:
        """A session with its runs and samplers."""
        tenant = await backend.tenant(request)
        refuse_foreign_scope(request)
        session = await sessions.get_with_contents(request.path_params["session"], tenant)
        labels = dict(session.user_metadata)
        return JSONResponse(
            {
                "training_run_ids": list(session.training_run_ids),
                "sampler_ids": list(session.sampling_session_ids),
                "display_name": labels.get(DISPLAY_NAME),
                "user_metadata": own_labels(labels),
            }
        )

    async def listing(request: Request) -> Response:
        """The tenant's sessions."""
        tenant = await backend.tenant(request)
        refuse_foreign_scope(request)
        found, _ = await sessions.page(tenant, offset_page(request, 20))
        return JSONResponse({"sessions": [session.session_id for session in found]})

    return [
        Route("/create_session", create, methods=["POST"]),
        Route("/session_heartbeat", heartbeat, methods=["POST"]),
        Route("/sessions", listing),
        Route("/sessions/{session}", get),
        Route("/sessions/{session}/finish", finish, methods=["POST"]),
    ]


def _labels(fields: CreateSession) -> dict[str, str]:
    labels = dict(fields.user_metadata or {})
    own = {TAGS: ",".join(fields.tags), PROJECT: fields.project_id, DISPLAY_NAME: fields.display_name}
    for name, value in own.items():
        if name in labels:
            raise InvalidArgumentError.must_be(
                f'user_metadata["{name}"]', "under another name: the platform uses this one"
            )
        if value:
            labels[name] = value
    check_metadata("user_metadata", labels)
    return labels
