"""Memory of a pass: what its jobs and rows take, and how its rows are laid out so that they fit.

A pass takes 4 bytes of gradient buffer for each weight of its jobs' adapters, and the activations of its longest row.
What a token's activations take is measured on the model itself. The rest follows from the device's free memory: short
rows keep their activations, longer ones keep each layer's input and compute the layers again in the backward pass. What
has run out of memory once is not tried again. Neither choice changes a job's bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from services.core.process.metrics import OUT_OF_MEMORY, PASS_MEMORY_BYTES
from services.trainer.values import PassJob

_GRADIENT_BYTES = 4
_LEAST_ROW_TOKENS = 256


@dataclass(frozen=True)
class Activations:
    """Bytes that a token of a row takes from its forward pass to the end of its backward pass."""

    kept: int
    """With everything that the backward pass needs."""

    recomputed: int
    """With each layer's input, and one layer's activations at a time."""


@dataclass(frozen=True)
class RowPlan:
    """How the rows of a pass are laid out."""

    most_tokens: int
    """Of a row of several parts."""

    keep_tokens: int
    """Rows with more tokens recompute their activations."""

    fits: bool
    """False if the pass is not expected to fit however its rows are laid out."""

    row_bytes: int
    """Of the longest row that is allowed."""


class PassMemory:
    """The device's memory as passes see it."""

    def __init__(self, measure: Callable[[], Activations], free: Callable[[], int], most_bytes: int | None) -> None:
        """
        Args:
            measure: what a token's activations take; called once, when it is first needed.
            free: bytes that a pass may take now.
            most_bytes: most bytes that a pass may take whatever is free; None: no such bound.
        """
        self._measure = measure
        self._free = free
        self.most_bytes = most_bytes
        """Lowered by what has run out of memory; None while nothing has."""

    @cached_property
    def activations(self) -> Activations:
        """What a token of a row takes."""
        return self._measure()

    @property
    def budget(self) -> int:
        """Bytes that a pass may take now."""
        return self._free() if self.most_bytes is None else min(self._free(), self.most_bytes)

    def row_tokens(self, most: int) -> int:
        """Where jobs are divided on this device: at most `most` tokens, halved until rows of that length fit.

        Rows that keep their activations are preferred down to a quarter of `most`; below that they would keep a GPU
        less busy than recomputing costs.
        """
        for bytes_a_token, least in (
            (self.activations.kept, most // 4),
            (2 * self.activations.recomputed, _LEAST_ROW_TOKENS),
        ):
            tokens = most
            while tokens > least and tokens * bytes_a_token > self.budget:
                tokens //= 2
            if tokens * bytes_a_token <= self.budget:
                break
        return tokens

    def plan(self, weights: int, longest_part: int, row_tokens: int) -> RowPlan:
        """Lays out a pass.

        Args:
            weights: numbers in the gradient buffers of its jobs.
            longest_part: tokens of the longest part that cannot be divided.
            row_tokens: most tokens of a row of several parts.
        """
        left = max(0, self.budget - _GRADIENT_BYTES * weights)
        keep = min(left // self.activations.kept, max(row_tokens, longest_part))
        recompute = left // self.activations.recomputed
        wanted = min(row_tokens, keep if keep >= row_tokens // 4 else recompute)
        most = max(wanted, longest_part)
        return RowPlan(most, keep, recompute >= longest_part, self._row_bytes(most, keep))

    def _row_bytes(self, most: int, keep: int) -> int:
        longest_that_keeps = min(most, keep)
        return max(
            longest_that_keeps * self.activations.kept,
            most * self.activations.recomputed if most > keep else 0,
        )

    def ran_out(self, weights: int, plan: RowPlan) -> None:
        """Learns that a pass laid out like this does not fit: its rows may take half as much from then on."""
        learned = _GRADIENT_BYTES * weights + plan.row_bytes // 2
        self.most_bytes = learned if self.most_bytes is None else min(self.most_bytes, learned)
        OUT_OF_MEMORY.inc()
        PASS_MEMORY_BYTES.set(self.most_bytes)


def longest_part(jobs: Sequence[PassJob], row_tokens: int) -> int:
    """Most tokens that a part of the jobs can have: a job is divided between examples, at `row_tokens` or before."""
    lengths = [[len(example.tokens) for example in job.examples] for job in jobs]
    return max(max(*of_job, min(row_tokens, sum(of_job))) for of_job in lengths)
