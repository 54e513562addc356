"""Starts of sequences: places, adapters and slots for those whose turn it is, and pauses of others for them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from services.model.adapters import AdapterWeights
from services.sampler.engine.residency import Residency
from services.sampler.engine.sequence import RunningSequence, SequenceGroup
from services.sampler.engine.slot_allocator import Allocation, SlotAllocator
from services.sampler.engine.stop import StopMatcher
from services.sampler.engine.turns import Turns, running_of
from services.sampler.request import GenerationRequest


class Starts:
    """Starts, pauses and goes on with the sequences of one engine.

    Args:
        groups: the engine's unfinished requests by name, in order of arrival.
        slots: where sequences find slots.
        residency: where requests find adapters.
        max_sequences: places.
        admit: called with each adapter that a request begins to use.
        stop_of: makes the stop matcher of a sequence.
    """

    def __init__(
        self,
        groups: Mapping[str, SequenceGroup],
        slots: SlotAllocator,
        residency: Residency,
        *,
        max_sequences: int,
        admit: Callable[[AdapterWeights], None],
        stop_of: Callable[[GenerationRequest], StopMatcher],
    ) -> None:
        self._groups, self._slots, self._residency = groups, slots, residency
        self._max_sequences, self._admit, self._stop_of = max_sequences, admit, stop_of
        self._turns = Turns(max_sequences)
        self.preemptions = 0
        """Number of times that a sequence has lost its slot."""

        self._ends = 0
        """Sequences that have ended, and requests that were dropped."""

        self._in_vain: dict[str, int] = {}
        """For a request that found no space, also where others could be paused: `_ends` at that time."""

        self._counted: Counter[str] | None = None
        """Running sequences of each tenant; None after a change."""

    def start_requests(self) -> list[tuple[SequenceGroup, Exception]]:
        """Starts sequences by turns while there are places; returns the requests that cannot start."""
        failed: list[tuple[SequenceGroup, Exception]] = []
        waiting: defaultdict[str, list[SequenceGroup]] = defaultdict(list)
        for group in self._groups.values():
            if group.can_run_more:
                waiting[group.request.tenant].append(group)
        while waiting:
            tenant = self._turns.next_tenant(waiting, self._running)
            started = False
            for group in self._next_of(waiting[tenant]):
                try:
                    started = started or self._start_next(group)
                except Exception as error:
                    failed.append((group, error))
                    waiting[tenant].remove(group)
                    started = True
            if not started:
                del waiting[tenant]
        return failed

    def _next_of(self, groups: Iterable[SequenceGroup]) -> list[SequenceGroup]:
        """The request of one tenant that comes next, and, if there is no place for it, the next that runs nothing."""
        able = [group for group in groups if group.can_run_more]
        idle = [] if self._has_free_sequence else [group for group in able if not group.running]
        return list(dict.fromkeys([*able[:1], *idle[:1]]))

    def _start_next(self, group: SequenceGroup) -> bool:
        """Starts a group's next sequence, or lets one go on; False if it has to wait."""
        if self._in_vain.get(group.request.name) == self._ends:
            return False
        victim = None if self._has_free_sequence else self._turns.victim(group, self._groups.values(), self._running)
        if (victim is None and not self._has_free_sequence) or not self._load_adapter(group):
            return False
        if victim is not None and not self._has_free_sequence:
            self._pause(victim)
        sequence = group.preempted[0] if group.preempted else None
        while (allocation := self._slots.resume(sequence) if sequence else self._slots.start(group)) is None:
            victim = self._turns.victim(group, self._groups.values(), self._running)
            if victim is None:
                self._in_vain[group.request.name] = self._ends
                return False
            self._pause(victim)
        if sequence is None:
            self.start_sequence(group, allocation)
        else:
            sequence.slot, sequence.computed = allocation.slot, allocation.computed
            sequence.drawn_at_start = len(sequence.logprobs)
            group.running.append(group.preempted.pop(0))
            self._counted = None
        self._turns.note_start(group.request.tenant)
        return True

    def _load_adapter(self, group: SequenceGroup) -> bool:
        """Makes a group a user of its adapter; False while all adapters on the device are used by running sequences."""
        if group.resident or group.request.adapter is None:
            return True
        while (adapter := self._residency.acquire(group.request.adapter)) is None:
            users = self._turns.adapter_users(group, self._groups.values(), self._running)
            if not users:
                return False
            for user in users:
                self._unload_adapter(user)
        group.adapter, group.resident = adapter, True
        self._admit(adapter)
        return True

    def _unload_adapter(self, group: SequenceGroup) -> None:
        """Pauses a group, which no longer uses its adapter."""
        assert group.request.adapter is not None
        for sequence in reversed(group.running):
            self._pause(sequence)
        self._residency.release(group.request.adapter)
        group.adapter, group.resident = None, False

    def _pause(self, sequence: RunningSequence) -> None:
        """Takes a sequence's slot away until its tenant has a turn again; what it has computed stays cached."""
        self.preemptions += 1
        self._counted = None
        self._slots.end(sequence)
        sequence.group.running.remove(sequence)
        sequence.group.preempted.insert(0, sequence)

    def preempt(self, sequence: RunningSequence) -> None:
        """Takes a sequence's slot away until there is space for it again."""
        self.preemptions += 1
        self._counted = None
        self._slots.release(sequence)
        sequence.group.running.remove(sequence)
        sequence.group.preempted.append(sequence)

    def start_sequence(self, group: SequenceGroup, allocation: Allocation) -> None:
        """Starts the group's next sequence."""
        request = group.request
        stop = self._stop_of(request)
        tokens = list(request.prompt)
        sequence = RunningSequence(group, group.started, allocation.slot, stop, tokens, allocation.computed)
        if group.first_tokens:
            sequence.append(group.first_tokens[sequence.index])
            sequence.drawn_at_start = 1
        group.running.append(sequence)
        group.started += 1
        self._counted = None

    def are_due_elsewhere(self, group: SequenceGroup) -> bool:
        """Whether another tenant has a turn where a group's sequence has ended, which does not run any more."""
        return self._turns.is_due_elsewhere(group, self._groups.values(), self._running)

    def note_end(self) -> None:
        """Records that a sequence has ended and does not run any more, so that those that found no space look again."""
        self._ends += 1
        self._counted = None

    def forget(self, group: SequenceGroup) -> None:
        """Forgets a request that the engine has dropped."""
        self._ends += 1
        self._counted = None
        self._in_vain.pop(group.request.name, None)
        if all(other.request.tenant != group.request.tenant for other in self._groups.values()):
            self._turns.forget(group.request.tenant)

    @property
    def _running(self) -> Counter[str]:
        if self._counted is None:
            self._counted = running_of(self._groups.values())
        return self._counted

    @property
    def _has_free_sequence(self) -> bool:
        return self._running.total() < self._max_sequences
