"""Which job a trainer carries out next: a pure function of what waits.

Only the head of a run's log can run, so order within a run is the log's. Between runs it is fair: each gets one job in
turn, however many another has waiting.
"""

from __future__ import annotations

from collections.abc import Collection


def plan(runs: Collection[str], previous: str | None) -> str | None:
    """The run whose head job goes next.

    Args:
        runs: the runs that have a job waiting.
        previous: the run that was chosen before; None at the start.

    Returns:
        The next after `previous` in a ring of their ids; None if no run waits.
    """
    following = [run for run in runs if previous is None or run > previous]
    return min(following or runs, default=None)
