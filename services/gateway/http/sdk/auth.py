"""The caller's own API key, for `tinker auth login` and `logout`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.gateway.http.backend import Backend, key_of

ORGANIZATION = "tinker-platform"


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    keys = backend.stores.api_keys

    async def describe(request: Request) -> Response:
        """The key that the request was sent with; its tenant stands where the SDK has an e-mail address."""
        tenant = await backend.tenant(request)
        key = await keys.record(key_of(request))
        details = {"org_details": {"name": ORGANIZATION}, "user_details": {"email": tenant}}
        number = int(key.key_id, 16)  # the SDK takes a number
        return JSONResponse({"key_id": number, "name": key.label or key.key_id, "note": "", "details": details})

    async def revoke(request: Request) -> Response:
        """Revokes the key that the request was sent with."""
        await backend.tenant(request)
        key = await keys.record(key_of(request))
        request.state.call.close()  # a revoked key ends its calls, and this one is to be answered
        await keys.revoke(key.key_id)
        return Response(status_code=204)

    return [
        Route("/auth/apikey/me", describe),
        Route("/auth/apikey/me", revoke, methods=["DELETE"]),
    ]
