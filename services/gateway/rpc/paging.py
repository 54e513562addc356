"""Page sizes and tokens of list calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from services.core.catalog.pages import Cursor, Page, PageRequest
from services.core.errors import InvalidArgumentError, quoted
from services.core.names import MAX_SEQ_ID
from services.gateway.validation.fields import check_range

MAX_PAGE_SIZE = 1000
PAGE_BYTES = 900 << 10
"""A page of larger entries has fewer than were asked for: it fits any message, whose smallest limit is 1 MiB."""

T = TypeVar("T", bound=Message)


def page_size(size: int, default_size: int) -> int:
    """The size of the requested page; 0 means the default.

    Raises:
        InvalidArgumentError: it is out of range.
    """
    check_range("page_size", size, 0, MAX_PAGE_SIZE)
    return size or default_size


def page_request(size: int, page_token: str, default_size: int) -> PageRequest:
    """The requested page of a listing that has the newest first.

    Raises:
        InvalidArgumentError: the size is out of range, or the token is none of ours.
    """
    return PageRequest(page_size(size, default_size), Cursor.parse(page_token))


def fitting(entries: Sequence[T], page: Page, name_of: Callable[[T], str]) -> tuple[Sequence[T], str]:
    """The entries of a page that fit a message, at least one, and the token of the page behind them."""
    size = 0
    for count, entry in enumerate(entries):
        size += entry.ByteSize()
        if size > PAGE_BYTES and count:
            return entries[:count], page.token_after(name_of(entries[count - 1]))
    return entries, page.next_page_token


def seq_id_of(page_token: str) -> int:
    """The operation that the page before ended with, in a listing by seq_id; -1 for the first page.

    Raises:
        InvalidArgumentError: the token is none of ours.
    """
    if not page_token:
        return -1
    if not (page_token.isascii() and page_token.isdecimal() and len(page_token) <= len(str(MAX_SEQ_ID))):
        raise InvalidArgumentError.must_be("page_token", "the next_page_token of a page before", quoted(page_token))
    return int(page_token)
