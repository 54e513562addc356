"""The next cycle of a trainer: a pure function of what waits and of who has been served so far.

A cycle is at most one operation of each run on its own (a step, a save, a replay), then passes of many runs together.
Order within a run is the log's. Between tenants it is fair: whoever has been served the fewest token-passes goes next,
and one who comes back after a pause starts level with the others, so that neither a flood nor idling earns an
advantage. Between the runs of one tenant the least recently served goes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Waiting:
    """One operation that waits in a run's log."""

    tenant: str

    cost: int
    """Tokens of a forward pass, BACKWARD_COST times that of a forward_backward; 0 for anything else."""

    joins: bool
    """Whether it may share a pass with others."""


@dataclass(frozen=True)
class Cycle:
    """What is carried out before the next look at what waits."""

    single: tuple[str, ...] = ()
    """Runs whose first operation goes on its own, one after another, before the pass."""

    joint: Mapping[str, int] = field(default_factory=dict)
    """How many operations of each run, behind its single one, go into one pass together."""

    def __bool__(self) -> bool:
        return bool(self.single or self.joint)


@dataclass(frozen=True)
class Shares:
    """Who has been served so far."""

    tenants: Mapping[str, int] = field(default_factory=dict)
    """Cost carried out for each tenant that waits or is ahead of those that do."""

    clock: int = 0
    """The smallest of these among tenants that waited last time: where a tenant without an entry starts."""

    runs: Mapping[str, int] = field(default_factory=dict)
    """For each waiting run the turn in which it was last served."""

    turn: int = 0


def plan(waiting: Mapping[str, Sequence[Waiting]], shares: Shares, budget: int) -> tuple[Cycle, Shares]:
    """Chooses a cycle.

    Args:
        waiting: for each run, what waits at the head of its log, in order.
        shares: what the call before returned; `Shares()` at the start.
        budget: most cost of a cycle; an operation that costs more on its own still goes, with nothing beside it.

    Returns:
        The cycle, empty if nothing waits, and the shares after it.
    """
    owners = {run: operations[0].tenant for run, operations in waiting.items() if operations}
    served = {tenant: max(shares.clock, shares.tenants.get(tenant, 0)) for tenant in owners.values()}
    last = {run: shares.runs.get(run, -1) for run in owners}
    single: list[str] = []
    joint: dict[str, int] = {}
    spent, turn, open_runs = 0, shares.turn, set(owners)
    while open_runs:
        run = min(open_runs, key=lambda run: (served[owners[run]], owners[run], last[run], run))
        taken = joint.get(run, 0) + (run in single)
        operation = waiting[run][taken] if taken < len(waiting[run]) else None
        fits = operation is not None and (spent + operation.cost <= budget or spent == 0)
        if operation is None or not fits or (taken and not operation.joins):
            open_runs.remove(run)
            continue
        if operation.joins:
            joint[run] = joint.get(run, 0) + 1
        else:
            single.append(run)
        spent += operation.cost
        served[owners[run]] += operation.cost
        last[run] = turn = turn + 1
    clock = min(served.values(), default=shares.clock)
    ahead = {tenant: cost for tenant, cost in shares.tenants.items() if cost > clock}
    return Cycle(tuple(single), joint), Shares({**ahead, **served}, clock, last, turn)
