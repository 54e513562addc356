"""Page sizes and tokens of list calls."""

from __future__ import annotations

from services.core.errors import InvalidArgumentError
from services.gateway.validation.fields import check_range

MAX_PAGE_SIZE = 1000


def page_bounds(page_size: int, page_token: str, default_size: int) -> tuple[int, int]:
    """The size and the start of the wanted page.

    Raises:
        InvalidArgumentError: the size is out of range, or the token is none of ours.
    """
    check_range("page_size", page_size, 0, MAX_PAGE_SIZE)
    if page_token and not (page_token.isascii() and page_token.isdecimal() and len(page_token) < 12):
        raise InvalidArgumentError.at("page_token", "is not the next_page_token of a page before")
    return page_size or default_size, int(page_token or 0)
