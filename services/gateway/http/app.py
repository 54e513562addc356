"""The HTTP server: all groups of routes in one Starlette application, in the gateway's own loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.config import GatewaySettings
from services.core.process.metrics import HTTP_REQUESTS
from services.core.queue.connection import RedisConnection
from services.gateway.http import monitoring
from services.gateway.http.backend import Backend
from services.gateway.http.body_budget import ReleaseWhenAnswered
from services.gateway.http.connections import closing_after
from services.gateway.http.description import described
from services.gateway.http.errors import exception_handlers
from services.gateway.http.openai.routes import openai_routes
from services.gateway.http.revoked import EndWithTheKey
from services.gateway.http.sdk.routes import sdk_routes

KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that they close them and no request meets a closing one."""


class _Server(uvicorn.Server):
    """Leaves signals to the process, which drains gRPC and HTTP together."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _CountAnswers:
    """Counts answers by status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                HTTP_REQUESTS.labels(str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)


def http_app(backend: Backend, connection: RedisConnection) -> Starlette:
    """Everything that the HTTP port answers."""
    routes = [*monitoring.routes(connection, backend.stores.workers), *sdk_routes(backend), *openai_routes(backend)]
    middleware = [
        Middleware(_CountAnswers),
        *_cross_origin(backend.settings),
        Middleware(EndWithTheKey, backend.stores.revocations),
        Middleware(ReleaseWhenAnswered),
    ]
    return Starlette(routes=described(routes), exception_handlers=exception_handlers(), middleware=middleware)


def _cross_origin(settings: GatewaySettings) -> list[Middleware]:
    """Answers the questions of browsers, for pages of the origins that are allowed; keys are headers, never cookies."""
    origins = [origin for origin in settings.cors_origins.split(",") if origin]
    if not origins:
        return []
    methods = ["GET", "POST", "DELETE"]
    return [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"])]


def http_server(backend: Backend, connection: RedisConnection) -> uvicorn.Server:
    """A server to run in the gateway's own loop."""
    settings = backend.settings
    config = uvicorn.Config(
        http_app(backend, connection),
        http=closing_after(settings.arrival_seconds),
        host=settings.host,
        port=settings.http_port,
        log_level="warning",
        lifespan="off",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    return _Server(config)
