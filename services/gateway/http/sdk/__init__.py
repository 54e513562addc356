"""The interface of the official `tinker` SDK under /api/v1: its JSON and protobuf, our application functions.

Requests become messages of tinker.v1 and are carried out as those of gRPC clients are; results become what the SDK
expects. A training request that cannot be carried out is accepted and fails by its promise: the SDK counts its seq_id
as used either way.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Mount

from services.gateway.http.front import Front
from services.gateway.http.sdk import (
    billing,
    checkpoints,
    client,
    downloads,
    futures,
    runs,
    sampling,
    sessions,
    training,
)

_GROUPS = (client, sessions, training, sampling, futures, runs, checkpoints, downloads, billing)


def routes(front: Front) -> Sequence[BaseRoute]:
    """All routes of the SDK."""
    return [Mount("/api/v1", routes=[route for group in _GROUPS for route in group.routes(front)])]
