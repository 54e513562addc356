"""Options that select checkpoints by run, type and time; `checkpoint list` and `checkpoint delete` share them.

Times without a zone are UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.listing import in_pages
from tinker_proto.path import CheckpointKind, TinkerPath

if TYPE_CHECKING:
    from tinker_client import RestClient
    from tinker_client.types import Checkpoint


PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME.")
]
RunId = Annotated[str | None, typer.Option("--run-id", metavar="RUN", help="Only checkpoints of this training run.")]
TypeOption = Annotated[
    CheckpointKind | None,
    typer.Option(
        "--type", help="Only training checkpoints (weights), or only checkpoints for sampling (sampler_weights)."
    ),
]
Before = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Only checkpoints created before this time: 2026-01-31, or 2026-01-31T12:00 (UTC unless a zone is given).",
    ),
]
After = Annotated[str | None, typer.Option(metavar="TIME", help="Only checkpoints created at this time or later.")]


@dataclass(frozen=True)
class Choice:
    """A selection of a user's checkpoints; None: no restriction."""

    run_id: str | None
    kind: CheckpointKind | None
    before: datetime | None
    after: datetime | None

    @classmethod
    def of(cls, run_id: str | None, kind: CheckpointKind | None, before: str | None, after: str | None) -> Choice:
        """From the options; text that is not a time is a usage error."""
        return cls(run_id, kind, _time("--before", before), _time("--after", after))

    @property
    def is_narrow(self) -> bool:
        """True if it restricts anything."""
        return self != Choice(None, None, None, None)

    def checkpoints(self, rest: RestClient, limit: int) -> Iterator[Checkpoint]:
        """The selected checkpoints, newest first, read as they are taken; `limit` is how many are needed, 0 for all."""
        return (item for item in self._candidates(rest, limit) if self._has(item))

    def _candidates(self, rest: RestClient, limit: int) -> Iterator[Checkpoint]:
        if self.run_id is not None:
            return iter(rest.list_checkpoints(self.run_id).result().checkpoints)

        def fetch(page_size: int, token: str) -> tuple[list[Checkpoint], str]:
            page = rest.list_user_checkpoints(page_size, token).result()
            return page.checkpoints, page.next_page_token

        return in_pages(fetch, 0 if self.is_narrow else limit)

    def _has(self, item: Checkpoint) -> bool:
        return (
            (self.kind is None or item.checkpoint_id.startswith(f"{self.kind}/"))
            and (self.before is None or item.time < self.before)
            and (self.after is None or item.time >= self.after)
        )


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"must be a time like 2026-01-31 or 2026-01-31T12:00 (got {text!r})", param_hint=option
        ) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def parse_path(text: str) -> TinkerPath:
    """A PATH argument; ValueError names it if it is not a tinker path."""
    try:
        return TinkerPath.parse(text)
    except ValueError as error:
        raise ValueError(f"PATH: {error}") from None
