"""The division of jobs into parts, and of parts into packed rows.

Where a job is divided follows from the job alone, and a part is never divided: a job adds up in the same order alone
and batched, which makes its bits the same wherever rows are computed row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from services.trainer.engine.job_under_way import JobUnderWay
from services.trainer.engine.prefix_sharing import Extent
from services.trainer.values import Example


@dataclass(frozen=True)
class Part:
    """Consecutive examples of one job that go through the model side by side."""

    job: JobUnderWay
    examples: Sequence[Example]

    tokens: int
    """Tokens of the row that they take."""


def divide(job: JobUnderWay, limit: int, *, may_share: bool) -> list[Part]:
    """Parts of at most `limit` tokens, filled in order; an example is never divided, so a long one is a part alone.

    With `may_share` common beginnings count as often as they are laid out.
    """
    parts: list[Part] = []
    extent: Extent | None = None
    for example in job.job.examples:
        own = torch.from_numpy(example.tokens)
        grown = extent.joined_by(own) if extent else None
        tokens = (grown.tokens if may_share else grown.whole) if grown else 0
        if grown and tokens <= limit:
            extent, parts[-1] = grown, Part(job, (*parts[-1].examples, example), tokens)
        else:
            extent = Extent.of(own)
            parts.append(Part(job, (example,), extent.whole))
    return parts


def fill_rows(parts: Iterable[Part], limit: int) -> Iterator[list[Part]]:
    """Rows of at most `limit` tokens, filled in order; a part that is longer has a row of its own."""
    row: list[Part] = []
    for part in parts:
        if row and sum(other.tokens for other in row) + part.tokens > limit:
            yield row
            row = []
        row.append(part)
    if row:
        yield row
