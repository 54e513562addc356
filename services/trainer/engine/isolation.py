"""Jobs of many tenants in one pass, so that whatever one of them does wrong stays with it.

A job whose numbers are not finite fails on its own inside the pass. If the pass as a whole fails, nothing of it has
been committed: its jobs are carried out again one by one, and only the culprit fails. If memory runs out, first fewer
jobs share a pass, then a job's activations are recomputed, then its rows get shorter; one that does not fit alone is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch

from services.core.errors import ResourceExhaustedError
from services.model.device import is_out_of_memory
from services.trainer.engine.local import TrainerEngine
from services.trainer.engine.pass_job import Outcome, Work

_log = structlog.get_logger(__name__)


def run_isolated(engine: TrainerEngine, work: Sequence[Work]) -> list[Outcome | Exception]:
    """Carries out jobs together; in the place of one that fails stands its error, and it has changed nothing."""
    try:
        return [*engine.run_pass(work)]
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        if len(work) == 1 and not out_of_memory:
            return [error]
        _log.warning("pass failed, its jobs run in smaller ones", jobs=len(work), exc_info=error)
    # Out of the except clause, whose error would keep the failed pass's tensors alive.
    if not out_of_memory:
        return [outcome for item in work for outcome in run_isolated(engine, [item])]
    torch.cuda.empty_cache()
    if len(work) == 1:
        return [_in_less_memory(engine, work[0])]
    middle = len(work) // 2
    return run_isolated(engine, work[:middle]) + run_isolated(engine, work[middle:])


def _in_less_memory(engine: TrainerEngine, item: Work) -> Outcome | Exception:
    """One job that recomputes its activations; if that is not enough, with half the tokens a row until it fits.

    The former changes no bit. The latter adds up in another order from then on, and ends where a row is one example.
    """
    longest = max(len(example.tokens) for example in item.examples)
    row_tokens = shorter = min(engine.row_tokens, sum(len(example.tokens) for example in item.examples))
    engine.recompute_above = min(engine.recompute_above, longest - 1)
    while True:
        try:
            (outcome,) = engine.run_pass([item], row_tokens=shorter)
        except Exception as error:
            if not is_out_of_memory(error):
                return error
        else:
            if shorter < row_tokens:
                engine.row_tokens = shorter
                _log.warning("out of memory, shorter rows from now on", row_tokens=shorter)
            return outcome
        torch.cuda.empty_cache()
        if shorter <= longest:
            break
        shorter = max(longest, shorter // 2)
    return ResourceExhaustedError(
        f"the job does not fit the trainer's memory on its own: its longest example has {longest} tokens",
        reason="OUT_OF_MEMORY",
    )
