"""Errors as HTTP answers: a status, one sentence, and the fields at fault.

409 is never sent: the official SDK repeats it for minutes. What is over a limit is 429 with the time to wait. A fault
of the platform is answered after `PAUSE_S`: who waits for a result asks again at once, whatever the answer says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from google.rpc import code_pb2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from services.core.errors import InternalError, PlatformError, ResourceExhaustedError, UnavailableError
from services.core.queue.connection import TRANSIENT_ERRORS
from services.gateway.http.body import BodyTooLargeError, WrongContentTypeError

PAUSE_S = 1.0

_log = structlog.get_logger(__name__)

_STATUS: Mapping[int, int] = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.ALREADY_EXISTS: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.CANCELLED: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.DEADLINE_EXCEEDED: 408,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.UNAVAILABLE: 503,
}
_STATUS_OF_KIND: Mapping[type[PlatformError], int] = {BodyTooLargeError: 413, WrongContentTypeError: 415}


def status_of(error: PlatformError) -> int:
    """The HTTP status of an error."""
    return _STATUS_OF_KIND.get(type(error)) or _STATUS.get(error.code, 500)


def retry_headers(error: PlatformError) -> dict[str, str]:
    """When to try again, where that helps."""
    if isinstance(error, ResourceExhaustedError):
        return {"retry-after-ms": str(round(error.retry_after_s * 1000))}
    return {"retry-after-ms": "1000"} if status_of(error) == 503 else {}


def error_response(error: PlatformError, status: int | None = None) -> Response:
    """The answer that carries an error."""
    content = {
        "detail": error.message,
        "reason": error.reason,
        "violations": [{"field": v.field, "description": v.description} for v in error.violations],
    }
    return JSONResponse(content, status_code=status or status_of(error), headers=retry_headers(error))


def exception_handlers() -> Mapping[type[Exception], ExceptionHandler]:
    """What Starlette does with whatever a route raises."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, PlatformError)
        return error_response(error)

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(
            {"detail": f"{request.method} {request.url.path[:200]}: {error.detail}", "reason": "NO_ROUTE"},
            status_code=error.status_code,
            headers=error.headers,
        )

    async def queue_away(request: Request, error: Exception) -> Response:
        await asyncio.sleep(PAUSE_S)
        return error_response(UnavailableError.of_queue())

    async def failed(request: Request, error: Exception) -> Response:
        known = InternalError.of_request()
        _log.error("request failed", incident=known.incident, path=request.url.path, exc_info=error)
        await asyncio.sleep(PAUSE_S)
        return error_response(known)

    return {
        PlatformError: refused,
        HTTPException: no_route,
        **dict.fromkeys(TRANSIENT_ERRORS, queue_away),
        Exception: failed,
    }
