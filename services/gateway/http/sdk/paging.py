"""Pages as the SDK asks for them: a limit and an offset in the query."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from services.core.catalog.pages import PageRequest
from services.core.errors import InvalidArgumentError, quoted
from services.gateway.rpc.paging import MAX_PAGE_SIZE
from services.gateway.validation.fields import check_range

MAX_OFFSET = 10_000_000
_SCOPES = ("owned", "accessible")


def offset_page(request: Request, default_limit: int) -> PageRequest:
    """The requested page.

    Raises:
        InvalidArgumentError: limit or offset is no number, or out of range.
    """
    limit = _number(request, "limit", default_limit, 1, MAX_PAGE_SIZE)
    return PageRequest(limit, skip=_number(request, "offset", 0, 0, MAX_OFFSET))


def cursor_fields(requested: PageRequest, total: int) -> dict[str, Any]:
    """Where a page is in its listing."""
    return {"offset": requested.skip, "limit": requested.size, "total_count": total}


def refuse_foreign_scope(request: Request) -> None:
    """Refuses filters that this platform does not have; both scopes mean what the tenant owns.

    Raises:
        InvalidArgumentError: names the parameter.
    """
    scope = request.query_params.get("access_scope", "owned")
    if scope not in _SCOPES:
        raise InvalidArgumentError.must_be("access_scope", f"one of {', '.join(_SCOPES)}", quoted(scope))
    if request.query_params.get("project_id"):
        raise InvalidArgumentError.at("project_id", "not supported")


def _number(request: Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise InvalidArgumentError.must_be(name, f"from {low} to {high}", quoted(text))
    check_range(name, int(text), low, high)
    return int(text)
