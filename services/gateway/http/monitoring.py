"""Monitoring: a health check for load balancers, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.process.workers import WorkerDirectory
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from services.gateway.queue_gauges import fill_gauges

ANSWER_WITHIN_S = 1.0
"""A health check reports a queue that does not answer this fast; calls that do work wait for it longer."""

_ABSENT = (TimeoutError, *TRANSIENT_ERRORS)


def routes(connection: RedisConnection, workers: WorkerDirectory) -> Sequence[BaseRoute]:
    """The routes of this group."""

    async def healthz(request: Request) -> Response:
        """Whether this gateway can do its work."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await connection.commands.ping()
        except _ABSENT as error:
            detail = f"queue: {error or 'it does not answer'}"
            return JSONResponse({"status": "unavailable", "detail": detail}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        """Metrics for Prometheus."""
        with suppress(*_ABSENT):  # what the process has counted itself is shown all the same
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await fill_gauges(connection, workers)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/metrics", metrics), Route("/api/v1/healthz", healthz)]
