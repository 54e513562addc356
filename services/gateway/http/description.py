"""A description of the HTTP port that programs read (/openapi.json) and one that people read (/docs).

Both are made from the routes themselves: paths and methods from the table, sentences from docstrings, bodies from the
types that the endpoints take.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from google.protobuf.message import Message
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

_COMPONENT = "#/components/schemas/{model}"
_ANSWERS = {
    "default": {
        "description": "An error: a sentence that names the field, the rule and the value, and a reason for programs."
    },
    "2XX": {"description": "The result."},
}


def described(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """The routes, and two that describe them all."""
    document = openapi(routes)
    page = _page(document)

    async def openapi_json(request: Request) -> Response:
        """This interface in OpenAPI's terms."""
        return JSONResponse(document)

    async def docs(request: Request) -> Response:
        """This interface for people."""
        return HTMLResponse(page)

    return [*routes, Route("/openapi.json", openapi_json), Route("/docs", docs)]


def openapi(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of routes."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for path, route in _flat(routes):
        for method in sorted((route.methods or set()) - {"HEAD"}):
            plain = re.sub(r":[a-z]+}", "}", path)
            paths.setdefault(plain, {})[method.lower()] = _operation(plain, method, route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tinker-platform", "version": version("tinker-platform")},
        "security": [{"key": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _flat(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, Route]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _flat(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            yield prefix + route.path, route


def _operation(path: str, method: str, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub('[^a-zA-Z0-9]+', '_', path)}",
        "tags": ["SDK" if path.startswith("/api/") else "OpenAI" if path.startswith("/v1/") else "operation"],
        "summary": (inspect.getdoc(route.endpoint) or "").partition("\n")[0],
        "responses": _ANSWERS,
    }
    if names := re.findall(r"{(\w+)}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    body = getattr(route.endpoint, "takes", None)
    if body is not None and method != "GET":
        operation["requestBody"] = {"required": True, "content": _content(body, schemas)}
    return operation


def _content(body: type[BaseModel] | type[Message], schemas: dict[str, Any]) -> Mapping[str, Any]:
    if issubclass(body, Message):
        return {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}}
    schema = body.model_json_schema(ref_template=_COMPONENT)
    schemas.update(schema.pop("$defs", {}))
    schemas[body.__name__] = schema
    return {"application/json": {"schema": {"$ref": _COMPONENT.format(model=body.__name__)}}}


def _page(document: Mapping[str, Any]) -> str:
    """One page without scripts and without anything from elsewhere: a lab may be closed."""
    rows = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            names = [part["schema"].get("$ref", "").rpartition("/")[2] for part in content.values()]
            body = "".join(
                f"<details><summary>{name}</summary><pre>"
                f"{html.escape(json.dumps(document['components']['schemas'][name], indent=1))}</pre></details>"
                for name in names
                if name
            )
            rows.append(
                f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
                f"<td>{html.escape(operation['summary'])}{body}</td></tr>"
            )
    style = "body{font:15px sans-serif;margin:2em}td{vertical-align:top;padding:.3em 1em .3em 0}pre{font-size:12px}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>tinker-platform</title><style>{style}</style>"
        "<h1>tinker-platform: HTTP</h1><p>Every request has a key: <code>X-API-Key: tml-...</code> or "
        "<code>Authorization: Bearer tml-...</code>. For programs: <a href=/openapi.json>openapi.json</a>.</p>"
        f"<table>{''.join(rows)}</table></html>"
    )
