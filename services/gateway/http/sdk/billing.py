"""Billing and audit: nothing is billed or recorded here, so every answer is empty."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.gateway.http.backend import Backend


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""

    async def no_usage(request: Request) -> Response:
        """Nothing is billed here."""
        await backend.tenant(request)
        return JSONResponse({"data": [], "sessions": {}})

    async def no_entries(request: Request) -> Response:
        """Nothing of the kind is kept here."""
        await backend.tenant(request)
        return JSONResponse({"entries": []})

    return [
        Route("/billing/usage/events", no_usage),
        Route("/billing/usage/checkpoints/current", no_usage),
        Route("/audit", no_entries),
    ]
