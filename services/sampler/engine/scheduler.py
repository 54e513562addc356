"""The tokens of the next step: a pure function of the running sequences.

Decodes come first, one token each, so that a long prefill never delays them. The rest of the token budget is shared
evenly by the tenants that have prefills, and a tenant's share goes to its prefills in order of arrival, in chunks. The
engine never runs more sequences than the budget has tokens, so a tenant's oldest prefill advances in every step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
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
            that the matrix products of a sequence are a function of the sequence alone. For the same reason a sequence
            that was preempted feeds what it had generated one token at a time again.
    """
    due = [sequence for sequence in sequences if sequence.due > 0]
    chunks = [Chunk.of(sequence, 1) for sequence in due if sequence.due == 1]
    left = max_tokens - len(chunks)
    prefills: defaultdict[str, list[RunningSequence]] = defaultdict(list)
    for sequence in due:
        if sequence.due > 1:
            prefills[sequence.group.request.tenant].append(sequence)
    by_need = sorted(prefills.values(), key=lambda own: sum(sequence.due for sequence in own))
    for index, own in enumerate(by_need):
        added = list(_prefills(own, max(left // (len(by_need) - index), 1), aligned=aligned)) if left > 0 else []
        chunks += added
        left -= sum(chunk.count for chunk in added)
    rank: dict[int, int] = {}
    for chunk in chunks:
        rank.setdefault(id(chunk.sequence.group.adapter), len(rank))
    return sorted(chunks, key=lambda chunk: rank[id(chunk.sequence.group.adapter)])


def _prefills(sequences: Iterable[RunningSequence], left: int, *, aligned: bool) -> Iterator[Chunk]:
    """Chunks of one tenant's prefills, of `left` >= 1 tokens in all."""
    for sequence in sequences:
        if left <= 0:
            return
        chunk = Chunk.of(sequence, _aligned_limit(sequence, left) if aligned else left)
        left -= chunk.count
        yield chunk


def _aligned_limit(sequence: RunningSequence, left: int) -> int:
    in_prompt = len(sequence.group.request.prompt) - sequence.computed
    if in_prompt <= 0:
        return 1
    if min(in_prompt, sequence.due) <= left:
        return in_prompt
    return min(max((sequence.computed + left) // ALIGNMENT * ALIGNMENT - sequence.computed, ALIGNMENT), in_prompt)
