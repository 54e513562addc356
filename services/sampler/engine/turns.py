"""Turns of tenants: whose sequence starts next, and whose is paused for it. No tensors.

- Places go to the tenant with the fewest running sequences, whatever its requests are; in one tenant to the requests in
  order of arrival.
- A tenant that waits takes a place, or rows of the KV store, from one that has at least two running sequences more. A
  tenant without any also takes the place of a single one that has drawn `QUANTUM` tokens since it started or went on,
  so that more tenants than places go on by turns, and none is paused before it has got anywhere.
- In one tenant, a request without any running sequence takes a place from one that has more than a quarter of all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from services.sampler.engine.sequence import RunningSequence, SequenceGroup

QUANTUM = 32


class Turns:
    """Turns for the places of one engine.

    Args:
        max_sequences: places.
    """

    def __init__(self, max_sequences: int) -> None:
        self._most_of_request = max(max_sequences // 4, 1)
        self._last_start: dict[str, int] = {}
        """Number of the start before which a tenant had its last turn; only of tenants with unfinished requests."""

        self._starts = 0

    def next_tenant(self, tenants: Collection[str], running: Counter[str]) -> str:
        """The tenant, out of at least one, that has the next turn; `running` as `running_of` counts."""
        return min(tenants, key=lambda tenant: (running[tenant], self._last_start.get(tenant, -1)))

    def note_start(self, tenant: str) -> None:
        """Records that a tenant had a turn."""
        self._starts += 1
        self._last_start[tenant] = self._starts

    def forget(self, tenant: str) -> None:
        """Forgets a tenant without unfinished requests."""
        self._last_start.pop(tenant, None)

    def victim(
        self, group: SequenceGroup, groups: Collection[SequenceGroup], running: Counter[str]
    ) -> RunningSequence | None:
        """The sequence that is paused so that one of `group` can run; None if the group has to wait."""
        tenant = group.request.tenant
        others = [other for other in running if other != tenant]
        most = max(others, key=running.__getitem__, default=tenant)
        if running[most] - running[tenant] >= 2:
            return _youngest(candidate for candidate in groups if candidate.request.tenant == most)
        if running[tenant] == 0:
            served = [s for g in groups for s in g.running if s.drawn_since_start >= QUANTUM]
            return max(served, key=lambda sequence: sequence.drawn_since_start, default=None)
        if not group.running:
            own = [other for other in groups if other.request.tenant == tenant]
            return _youngest(other for other in own if len(other.running) > self._most_of_request)
        return None

    def adapter_users(
        self, group: SequenceGroup, groups: Collection[SequenceGroup], running: Counter[str]
    ) -> list[SequenceGroup]:
        """The users of one adapter that give it up so that the one of `group` finds a place; none if it has to wait.

        They run nothing; or they belong to tenants that use at least two adapters more; or the tenant of `group` runs
        nothing, and they have all drawn `QUANTUM` tokens.
        """
        users: defaultdict[Path | None, list[SequenceGroup]] = defaultdict(list)
        adapters: Counter[str] = Counter()
        for user in groups:
            if user.resident:
                adapters[user.request.tenant] += user.request.adapter not in users
                users[user.request.adapter].append(user)
        tenant = group.request.tenant

        def may_stop(user: SequenceGroup) -> bool:
            if not user.running or adapters[user.request.tenant] - adapters[tenant] >= 2:
                return not user.running or user.request.tenant != tenant
            return running[tenant] == 0 and all(s.drawn_since_start >= QUANTUM for s in user.running)

        able = [found for found in users.values() if all(map(may_stop, found))]
        return min(able, key=lambda found: sum(len(user.running) for user in found), default=[])

    def is_due_elsewhere(self, group: SequenceGroup, groups: Collection[SequenceGroup], running: Counter[str]) -> bool:
        """Whether another tenant has a turn where a group's sequence has ended, which does not run any more."""
        tenant = group.request.tenant
        waiting = {other.request.tenant for other in groups if other.waiting_sequences} - {tenant}
        return any(running[other] <= running[tenant] for other in waiting)


def running_of(groups: Iterable[SequenceGroup]) -> Counter[str]:
    """Number of running sequences of each tenant that has any."""
    running: Counter[str] = Counter()
    for group in groups:
        if group.running:
            running[group.request.tenant] += len(group.running)
    return running


def rows_of(groups: Iterable[SequenceGroup]) -> Counter[str]:
    """Rows of the KV store that the running sequences of each tenant have."""
    rows: Counter[str] = Counter()
    for group in groups:
        for sequence in group.running:
            rows[group.request.tenant] += sequence.slot.length
    return rows


def _youngest(groups: Iterable[SequenceGroup]) -> RunningSequence | None:
    """The last sequence of the group with the most running ones, the latest of such groups; None without any."""
    found = max(enumerate(groups), key=lambda item: (len(item[1].running), item[0]), default=None)
    return found[1].running[-1] if found is not None and found[1].running else None
