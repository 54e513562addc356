"""All groups of routes of the official SDK, in one place."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Mount

from services.gateway.http.backend import Backend
from services.gateway.http.sdk import (
    auth,
    billing,
    checkpoints,
    client,
    downloads,
    futures,
    runs,
    sampling,
    session_search,
    sessions,
    traces,
    training,
)

_GROUPS = (
    client,
    session_search,
    sessions,
    training,
    sampling,
    futures,
    runs,
    checkpoints,
    downloads,
    traces,
    billing,
    auth,
)


def sdk_routes(backend: Backend) -> Sequence[BaseRoute]:
    """All routes of the SDK."""
    return [Mount("/api/v1", routes=[route for group in _GROUPS for route in group.routes(backend)])]
