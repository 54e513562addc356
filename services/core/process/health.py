"""Health service of one server (grpc.health.v1.Health): SERVING until the server is about to stop.

The servicer of grpcio-health-checking is not used: it has no List, and its Watch ends only with its caller, so that a
draining server would wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.core.errors import NotFoundError

_Response = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Health of the services that were named; needs no key."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self._leaving = asyncio.Event()

    def serve(self, *names: str) -> None:
        """Sets these services, and the server as a whole, to SERVING."""
        self._names = frozenset(("", *names))

    def leave(self) -> None:
        """Sets every service to NOT_SERVING for good, and ends every watch."""
        self._leaving.set()

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """The health of one service, or of the server: ""."""
        if request.service not in self._names:
            raise NotFoundError(f"there is no service {request.service[:200]!r}")
        return self._now()

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """The health of every service."""
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(self._names, self._now()))

    async def Watch(  # noqa: N802
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """The health of one service now, and once more when the server is about to stop."""
        if request.service not in self._names:
            yield _Response(status=_Response.SERVICE_UNKNOWN)
            await self._leaving.wait()
            return
        if not self._leaving.is_set():
            yield self._now()
            await self._leaving.wait()
        yield self._now()

    def _now(self) -> Any:
        return _Response(status=_Response.NOT_SERVING if self._leaving.is_set() else _Response.SERVING)
