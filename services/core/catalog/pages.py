"""Pages of sorted sets in Redis, newest first.

A page token names the entry that the previous page ended with, not a count: entries that are added or removed between
two pages never make the next page repeat or skip another entry.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.core.errors import InvalidArgumentError
from services.core.queue.connection import RedisConnection

_CURSOR = re.compile(r"(?P<score>[0-9]{1,20}(\.[0-9]{1,20})?(e\+[0-9]{1,2})?) (?P<member>[\x21-\x7e]{1,500})")


@dataclass(frozen=True)
class Cursor:
    """Position in a listing: the entry that a page ended with."""

    score: str
    member: str

    @property
    def token(self) -> str:
        """The page token that stands for it."""
        return base64.urlsafe_b64encode(f"{self.score} {self.member}".encode()).decode()

    @classmethod
    def parse(cls, token: str) -> Cursor | None:
        """Reads a page token; "" is the beginning.

        Raises:
            InvalidArgumentError: it is no page token of this platform.
        """
        if not token:
            return None
        try:
            match = _CURSOR.fullmatch(base64.b64decode(token, altchars=b"-_", validate=True).decode())
        except (binascii.Error, ValueError):
            match = None
        if match is None:
            raise InvalidArgumentError.must_be("page_token", "empty or the next_page_token of a previous page")
        return cls(match["score"], match["member"])


@dataclass(frozen=True)
class PageRequest:
    """Size and start of a requested page."""

    size: int
    after: Cursor | None = None

    skip: int = 0
    """Number of entries to skip; for callers that count instead of following tokens."""


@dataclass(frozen=True)
class Page:
    """Names of one page of a listing, newest first."""

    names: Sequence[str]
    next_page_token: str
    total_size: int
    scores: Mapping[str, str] = field(default_factory=dict)
    """Of each name."""

    def token_after(self, name: str) -> str:
        """The token of the page that goes on behind `name`, an entry of this one."""
        return Cursor(self.scores[name], name).token


async def read_page(connection: RedisConnection, index: str, wanted: PageRequest) -> Page:
    """A page of a sorted set."""
    score, member = (wanted.after.score, wanted.after.member) if wanted.after else ("", "")
    total, more, *found = await connection.run("list_page", [index], [wanted.size, score, member, wanted.skip])
    names = [name.decode() for name in found[::2]]
    token = Cursor(found[-1].decode(), names[-1]).token if names and more else ""
    return Page(names, token, total, dict(zip(names, (score.decode() for score in found[1::2]), strict=True)))
