"""Requests whose API key is revoked while they are answered: a 401, or the last event of a stream."""

from __future__ import annotations

import json

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.catalog.revocations import Revocations
from services.core.errors import UnauthenticatedError
from services.gateway.http import errors
from services.gateway.http.openai import errors as openai_errors


class EndWithTheKey:
    """Middleware that ends requests, held ones and streams too, when their key is revoked."""

    def __init__(self, app: ASGIApp, revocations: Revocations) -> None:
        self._app = app
        self._revocations = revocations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application around another."""
        begun: list[Message] = []

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message)
            await send(message)

        try:
            with self._revocations.open_call() as call:
                scope.setdefault("state", {})["call"] = call
                await self._app(scope, receive, answering)
        except UnauthenticatedError as error:
            if not begun:
                await _answer(scope, error)(scope, receive, send)
            elif b"text/event-stream" in dict(begun[0]["headers"]).get(b"content-type", b""):
                event = f"data: {json.dumps(openai_errors.content_of(error))}\n\n"
                await send({"type": "http.response.body", "body": event.encode()})
            # What has another length than announced is cut off by the server.


def _answer(scope: Scope, error: UnauthenticatedError) -> Response:
    is_openai = scope["path"].startswith("/v1/")
    return openai_errors.error_response(error) if is_openai else errors.error_response(error)
