"""Errors in the shape that OpenAI's clients read: message, type, param and code."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.core.errors import InternalError, NotFoundError, PlatformError, UnauthenticatedError, UnavailableError
from services.core.queue.connection import TRANSIENT_ERRORS
from services.gateway.http.disconnect import CallerDisconnectedError
from services.gateway.http.errors import retry_headers, status_of

Endpoint = Callable[[Request], Awaitable[Response]]

CALLER_GONE = 499
"""What proxies log for it; nobody reads the answer."""

_log = structlog.get_logger(__name__)

_PARAMS = {
    "num_samples": "n",
    "prompt": "prompt",
    "topk_prompt_logprobs": "logprobs",
    "topk_sample_logprobs": "logprobs",
    "include_raw_logprobs": "logprobs",
    "include_prompt_logprobs": "echo",
    "stop.strings": "stop",
    "model_path": "model",
    "base_model": "model",
}
"""Names of request fields by what they become."""


def content_of(error: PlatformError) -> dict[str, Any]:
    """The body that carries an error."""
    field = error.violations[0].field.removeprefix("sampling_params.") if error.violations else None
    status = _status(error)
    return {
        "error": {
            "message": error.message,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": _PARAMS.get(field, field) if field else None,
            "code": _code(error),
        }
    }


def error_response(error: PlatformError) -> Response:
    """The answer that carries an error."""
    return JSONResponse(content_of(error), status_code=_status(error), headers=retry_headers(error))


def answering_errors(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose failures are answered in OpenAI's shape."""

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except PlatformError as error:
            return error_response(error)
        except CallerDisconnectedError:
            return Response(status_code=CALLER_GONE)
        except TRANSIENT_ERRORS:
            return error_response(UnavailableError.of_queue())
        except Exception as error:
            known = InternalError.of_request()
            _log.error("request failed", incident=known.incident, path=request.url.path, exc_info=error)
            return error_response(known)

    return answer


def _is_about_model(error: PlatformError) -> bool:
    return isinstance(error, NotFoundError) or error.reason == "UNKNOWN_BASE_MODEL"


def _status(error: PlatformError) -> int:
    return 404 if _is_about_model(error) else status_of(error)


def _code(error: PlatformError) -> str:
    if _is_about_model(error):
        return "model_not_found"
    return "invalid_api_key" if isinstance(error, UnauthenticatedError) else error.reason.lower()
