"""The tokens of the next step: a pure function of the running sequences.

Decodes come first, one token each, so that a long prefill never delays them. Prefills share the rest of the token
budget in order of arrival, in chunks. The engine never runs more sequences than the budget has tokens, so the oldest
prefill advances in every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.sampler.engine.sequence import RunningSequence


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of a sequence, the next that are due."""

    sequence: RunningSequence
    start: int
    end: int

    draws: bool
    """Whether its last row predicts a new token."""

    @classmethod
    def of(cls, sequence: RunningSequence, limit: int) -> Chunk:
        """The next due tokens of a sequence, at most `limit`."""
        count = min(limit, sequence.due)
        draws = sequence.generates and count == sequence.due
        return cls(sequence, sequence.computed, sequence.computed + count, draws)

    @property
    def count(self) -> int:
        """Tokens in it."""
        return self.end - self.start


ALIGNMENT = 64
"""Aligned chunks end at multiples of this, in tokens of their sequence."""


def schedule(sequences: Iterable[RunningSequence], max_tokens: int, *, aligned: bool = False) -> list[Chunk]:
    """Chunks of at most `max_tokens` tokens in all, ordered so that each adapter's are adjacent.

    Args:
        sequences: running sequences in order of arrival.
        max_tokens: the step's token budget, at least the number of sequences.
        aligned: prompts are cut only at multiples of `ALIGNMENT`, even if the budget is exceeded by one such chunk, so
            that the matrix products of a sequence are a function of the sequence alone.
    """
    due = [sequence for sequence in sequences if sequence.due > 0]
    chunks = [Chunk.of(sequence, 1) for sequence in due if sequence.due == 1]
    left = max_tokens - len(chunks)
    for sequence in due:
        if sequence.due > 1 and left > 0:
            limit = left
            if aligned and sequence.due > left:
                limit = max((sequence.computed + left) // ALIGNMENT * ALIGNMENT - sequence.computed, ALIGNMENT)
            chunks.append(Chunk.of(sequence, limit))
            left -= chunks[-1].count
    rank: dict[int, int] = {}
    for chunk in chunks:
        rank.setdefault(id(chunk.sequence.group.adapter), len(rank))
    return sorted(chunks, key=lambda chunk: rank[id(chunk.sequence.group.adapter)])
