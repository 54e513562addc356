"""The routes under /v1."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Mount, Route

from services.gateway.http.backend import Backend
from services.gateway.http.openai.chat import ChatCompletions
from services.gateway.http.openai.completions import Completions
from services.gateway.http.openai.errors import answering_errors
from services.gateway.http.openai.generations import Generations
from services.gateway.http.openai.models import Models
from services.gateway.http.openai.targets import Targets


def openai_routes(backend: Backend) -> Sequence[BaseRoute]:
    """All routes of this part."""
    targets, generations = Targets(backend), Generations(backend)
    completions, chat = Completions(backend, targets, generations), ChatCompletions(backend, targets, generations)
    models = Models(backend, targets)
    endpoints = [
        ("/completions", completions.create, "POST"),
        ("/chat/completions", chat.create, "POST"),
        ("/models", models.list, "GET"),
        ("/models/{model:path}", models.get, "GET"),
    ]
    return [
        Mount("/v1", routes=[Route(path, answering_errors(call), methods=[method]) for path, call, method in endpoints])
    ]
