"""Jobs of many tenants in one pass: what is wrong with one job is that job's error alone.

A job whose numbers are not finite fails on its own inside the pass. If the pass as a whole fails, nothing of it has
been committed: its jobs are carried out again one by one, and only the culprit fails. If memory runs out, the engine
learns from it: the same jobs go again in rows that take less, then fewer of them share a pass, and later passes begin
that way. A job that does not fit alone gets shorter rows, and fails if that is not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog
import torch

from services.core.errors import PlatformError, ResourceExhaustedError
from services.model.device import is_out_of_memory
from services.trainer.engine.pass_memory import RowPlan
from services.trainer.values import PassJob, PassResult

_log = structlog.get_logger(__name__)


class Passes(Protocol):
    """Runs passes that succeed or fail as a whole."""

    row_tokens: int
    """Most tokens of a packed row; lowered for good when a job fits in shorter rows only."""

    def plan(self, jobs: Sequence[PassJob]) -> RowPlan:
        """How the rows of a pass of these jobs would be laid out."""

    def ran_out(self, jobs: Sequence[PassJob], plan: RowPlan) -> None:
        """Learns that a pass ran out of memory: its rows take less from then on."""

    def run_pass(self, jobs: Sequence[PassJob], *, row_tokens: int | None = None) -> list[PassResult | PlatformError]:
        """One pass, with rows of `row_tokens` if that is given; raises what is wrong with the pass as a whole."""


def run_isolated(engine: Passes, jobs: Sequence[PassJob]) -> list[PassResult | Exception]:
    """Carries out jobs together; in the place of one that fails stands its error, and it has changed nothing."""
    if not jobs:
        return []
    plan = None
    try:
        plan = engine.plan(jobs)
        if plan.fits:
            return [*engine.run_pass(jobs)]
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        if len(jobs) == 1 and not out_of_memory:
            return [error]
        _log.warning("pass failed, its jobs run again", jobs=len(jobs), exc_info=error)
        if not out_of_memory:
            return [result for job in jobs for result in run_isolated(engine, [job])]
    # Out of the except clause, whose error would keep the failed pass's tensors alive.
    return _take_less_memory(engine, jobs, plan)


def _take_less_memory(engine: Passes, jobs: Sequence[PassJob], plan: RowPlan | None) -> list[PassResult | Exception]:
    """Carries out jobs that ran out of memory as `plan` has it, or do not fit by plan; None: planning them did."""
    torch.cuda.empty_cache()
    if plan is not None and plan.fits:
        engine.ran_out(jobs, plan)
        return run_isolated(engine, jobs)
    if len(jobs) == 1:
        return [_in_shorter_rows(engine, jobs[0])]
    middle = len(jobs) // 2
    return run_isolated(engine, jobs[:middle]) + run_isolated(engine, jobs[middle:])


def _in_shorter_rows(engine: Passes, job: PassJob) -> PassResult | Exception:
    """One job that may not fit: as it is, then with half the tokens a row until it fits.

    Shorter rows add up in another order from then on, and end where a row is one example.
    """
    longest = max(len(example.tokens) for example in job.examples)
    row_tokens = shorter = min(engine.row_tokens, sum(len(example.tokens) for example in job.examples))
    while True:
        try:
            (result,) = engine.run_pass([job], row_tokens=shorter)
        except Exception as error:
            if not is_out_of_memory(error):
                return error
        else:
            if shorter < row_tokens:
                engine.row_tokens = shorter
                _log.warning("out of memory, shorter rows from now on", row_tokens=shorter)
            return result
        torch.cuda.empty_cache()
        if shorter <= longest:
            break
        shorter = max(longest, shorter // 2)
    return ResourceExhaustedError(
        f"the job does not fit the trainer's memory on its own: its longest example has {longest} tokens",
        reason="OUT_OF_MEMORY",
    )
