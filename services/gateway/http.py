"""The gateway's HTTP port: a health check for load balancers and metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.core.config import Settings
from services.core.connection import TRANSIENT_ERRORS, RedisConnection


class _Server(uvicorn.Server):
    """Leaves signals to the process, which drains gRPC and HTTP together."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(settings: Settings, connection: RedisConnection) -> uvicorn.Server:
    """A server to run in the gateway's own loop."""

    async def healthz(request: Request) -> Response:
        try:
            await connection.commands.ping()
        except TRANSIENT_ERRORS as error:
            return JSONResponse({"status": "unavailable", "detail": f"queue: {error}"}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(routes=[Route("/healthz", healthz), Route("/metrics", metrics)])
    config = uvicorn.Config(
        app, host=settings.host, port=settings.http_port, log_level="warning", lifespan="off", access_log=False
    )
    return _Server(config)
