"""Kills and pauses drawn from a seed; what they hit is a matter of the moment.

An operation that two workers have died at counts as deadly and fails by name, which is right and not what is looked for
here: a worker of a kind is hit again only when what the kind was doing at the last hit has its results. Recovery needs
a while in which the queue stays up; where that has not come by itself for long, the injector waits until it is over.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import redis

from services.core.queue import keyspace
from tests.chaos.site import BASE_MODEL, KINDS, LEASE_S, Kind, Site

LONGEST_REST_S = 0.4
SHARE_OF_PAUSES = 0.15
PATIENCE_S = 20.0
RECOVERY_TIMEOUT_S = 60.0

Condition = Callable[[], bool]


@dataclass
class FaultInjector:
    """Hits the processes of a site until so many have been killed."""

    site: Site
    kills: int
    seed: int
    runs: Callable[[], Sequence[str]]
    """The training runs so far."""

    report: Callable[[str], None]
    killed: Counter[str] = field(default_factory=Counter)
    paused: Counter[str] = field(default_factory=Counter)
    slowest_recovery_s: float = 0.0
    died_alone: list[str] = field(default_factory=list)
    _waiting: dict[Kind, tuple[float, Condition]] = field(default_factory=dict)

    def run(self) -> None:
        """Kills until it is enough; ends when what was hit last has recovered."""
        drawn = random.Random(self.seed)
        started = time.monotonic()
        while self.killed.total() < self.kills:
            self._let_recover()
            kind = drawn.choice(KINDS)
            index = drawn.randrange(2)
            rest = drawn.uniform(0, LONGEST_REST_S)
            pauses = drawn.random() < SHARE_OF_PAUSES
            if self._has_recovered(kind):
                self._hit(kind, index, pauses=pauses)
                seconds = time.monotonic() - started
                self.report(
                    f"{self.killed.total()} of {self.kills} killed, {self.paused.total()} paused, {seconds:.0f} s"
                )
            time.sleep(rest)
        while not all(self._has_recovered(kind) for kind in KINDS):
            time.sleep(0.05)

    def _let_recover(self) -> None:
        """Hits nothing while something has waited for long."""
        self.died_alone += self.site.revive()
        while any(
            time.monotonic() - since > PATIENCE_S and not self._has_recovered(kind)
            for kind, (since, _) in list(self._waiting.items())
        ):
            self.died_alone += self.site.revive()
            time.sleep(0.05)

    def _hit(self, kind: Kind, index: int, *, pauses: bool) -> None:
        if pauses:
            self.paused[kind] += 1
            self.site.pause(kind, index, 0.5 if kind == "valkey" else 2 * LEASE_S)
        else:
            self.killed[kind] += 1
            self.site.kill(kind, index)
        self._waiting[kind] = (time.monotonic(), self._under_way(kind))

    def _has_recovered(self, kind: Kind) -> bool:
        if kind not in self._waiting:
            return True
        since, is_over = self._waiting[kind]
        seconds = time.monotonic() - since
        if not is_over():
            assert seconds < RECOVERY_TIMEOUT_S, f"nothing goes on {seconds:.0f} s after a {kind} was hit"
            return False
        self.slowest_recovery_s = max(self.slowest_recovery_s, seconds)
        del self._waiting[kind]
        return True

    def _under_way(self, kind: Kind) -> Condition:
        """Whether what a kind of worker has not finished now has its results, to be asked later."""
        if kind == "trainer":
            heads = {run: done + 1 for run, (done, following) in self._marks().items() if done + 1 < following}
            return lambda: all(self._marks()[run][0] >= head for run, head in heads.items())
        if kind == "sampler":
            jobs = self._sample_jobs()
            return lambda: not jobs & self._sample_jobs()
        return lambda: True

    def _marks(self) -> dict[str, tuple[int, int]]:
        """For each run, up to where its log is done, and where it ends."""
        with redis.Redis.from_url(self.site.redis_url) as commands:
            found = {run: commands.hmget(keyspace.run_meta(run), "done_seq", "next_seq") for run in self.runs()}
        return {run: (int(done or -1), int(following or 0)) for run, (done, following) in found.items()}

    def _sample_jobs(self) -> set[bytes]:
        """Those that wait too: a sampler may begin one in the moment in which it is hit."""
        with redis.Redis.from_url(self.site.redis_url) as commands:
            waiting = commands.zrange(keyspace.sample_waiting(BASE_MODEL), 0, -1)
            taken = commands.xrange(keyspace.sample_queue(BASE_MODEL))
        return {*waiting, *(fields[b"operation"] for _, fields in taken)}
