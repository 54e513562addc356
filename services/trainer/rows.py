"""How jobs are divided into parts and parts laid into packed rows.

Where a job is divided follows from the job alone, and a part is never divided: what a job adds up it adds up in the
same order in any company, which makes its bits the same wherever rows are computed row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.trainer.batch import Example
from services.trainer.sharing import common_beginning
from services.trainer.work import JobUnderWay


@dataclass(frozen=True)
class Part:
    """Consecutive examples of one job that go through the model side by side."""

    job: JobUnderWay
    examples: Sequence[Example]

    tokens: int
    """Their tokens; what an example has in common with the one before counts once, as it is laid out if that pays."""


def divide(job: JobUnderWay, limit: int) -> list[Part]:
    """Parts of at most `limit` tokens, filled in order; an example is never divided, so a long one is a part alone."""
    parts: list[Part] = []
    for example in job.work.examples:
        last = parts[-1] if parts else Part(job, (), 0)
        common = common_beginning(last.examples[-1].tokens, example.tokens) if last.examples else 0
        if last.examples and last.tokens + len(example.tokens) - common <= limit:
            parts[-1] = Part(job, (*last.examples, example), last.tokens + len(example.tokens) - common)
        else:
            parts.append(Part(job, (example,), len(example.tokens)))
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
