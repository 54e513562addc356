"""Lists that come in pages; a page is read only when its items are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli.output import print_json, print_line

if TYPE_CHECKING:
    from services.cli.access import Access

T = TypeVar("T")

LARGEST_PAGE = 1000

Limit = Annotated[int, typer.Option(min=0, metavar="N", help="Largest number of entries; 0 shows all.")]

FetchPage = Callable[[int, str], tuple[list[T], str]]
"""(page size, page token) → items and the next page's token, empty on the last page."""


def in_pages(fetch: FetchPage[T], limit: int) -> Iterator[T]:
    """Every item, page by page; the pages are as large as `limit` needs."""
    page_size = min(limit + 1, LARGEST_PAGE) if limit else LARGEST_PAGE
    token = ""
    while True:
        items, token = fetch(page_size, token)
        yield from items
        if not token:
            return


def at_most(items: Iterable[T], limit: int) -> tuple[list[T], bool]:
    """The first `limit` items, or all if it is 0, and whether there are more."""
    if not limit:
        return list(items), False
    taken = list(islice(items, limit + 1))
    return taken[:limit], len(taken) > limit


def print_listing(
    access: Access, name: str, items: Iterable[T], limit: int, *, nothing: str, table: Callable[[list[T]], None]
) -> None:
    """Prints a list in the format that the user chose.

    Args:
        access: knows the format.
        name: name of the list in JSON.
        items: the entries, newest first, read only as far as they are shown.
        limit: largest number of entries; 0 for all.
        nothing: sentence that stands for an empty table.
        table: prints a table of entries.
    """
    shown, has_more = at_most(items, limit)
    if access.wants_json:
        print_json({name: shown, "has_more": has_more})
    elif not shown:
        print_line(nothing)
    else:
        table(shown)
        if has_more:
            print_line(f"Newest {limit} only; --limit 0 shows all.")
