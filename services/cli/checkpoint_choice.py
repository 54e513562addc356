"""Which checkpoints are meant: those of a run, of a type, of a time; the same options list and delete.

Times without a zone are UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.listing import in_pages

if TYPE_CHECKING:
    from tinker_client import RestClient
    from tinker_client.types import Checkpoint


class CheckpointKind(StrEnum):
    """The middle part of a checkpoint's path."""

    WEIGHTS = "weights"
    SAMPLER_WEIGHTS = "sampler_weights"


PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME.")
]
RunId = Annotated[str | None, typer.Option("--run-id", metavar="RUN", help="Only those of this training run.")]
TypeOption = Annotated[
    CheckpointKind | None, typer.Option("--type", help="Only training checkpoints, or only those for sampling.")
]
Before = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only those made before: 2026-01-31, or 2026-01-31T12:00 (UTC, or with a zone)."),
]
After = Annotated[str | None, typer.Option(metavar="TIME", help="Only those made at this time or later.")]


@dataclass(frozen=True)
class Choice:
    """A part of a user's checkpoints; None: no restriction."""

    run_id: str | None
    kind: CheckpointKind | None
    before: datetime | None
    after: datetime | None

    @classmethod
    def of(cls, run_id: str | None, kind: CheckpointKind | None, before: str | None, after: str | None) -> Choice:
        """From the options; a time that is none is a usage error."""
        return cls(run_id, kind, _time("--before", before), _time("--after", after))

    @property
    def is_narrow(self) -> bool:
        """Whether it is less than all."""
        return self != Choice(None, None, None, None)

    def checkpoints(self, rest: RestClient, limit: int) -> Iterator[Checkpoint]:
        """Those it has, newest first, read as they are taken; `limit` is how many are wanted, 0 for all."""
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
            f"{text!r} is not a time like 2026-01-31 or 2026-01-31T12:00", param_hint=option
        ) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
