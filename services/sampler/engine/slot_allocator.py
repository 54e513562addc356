"""Slots of running sequences in the KV store: where they start, how they grow, what stays when they end.

A slot begins with space for its tokens and some more, and grows by half when it is full, so that requests which could
become long do not keep others out. Rows are first taken from free ones, then from cached prefixes, least recently used
first; when that is not enough the engine preempts a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.sampler.engine.kv import KVStore, Slot
from services.sampler.engine.prefix_cache import BLOCK, PrefixCache, block_digests
from services.sampler.engine.sequence import RunningSequence, SequenceGroup
from services.sampler.request import GenerationRequest

LEAST_GROWTH = 256
"""Rows that a slot has at least beyond its sequence's tokens when it is allocated."""


@dataclass(frozen=True)
class Allocation:
    """A slot for a sequence that starts."""

    slot: Slot
    computed: int
    """Number of the sequence's tokens whose keys and values it holds already."""


class SlotAllocator:
    """Slots of one KV store.

    Args:
        store: the store.
        deterministic: a sequence gets space for all that it may become, and computes all of its prompt itself, so that
            its numbers do not depend on what else is in the store.
        share_prefixes: tenants find each other's cached prefixes.
    """

    def __init__(self, store: KVStore, *, deterministic: bool, share_prefixes: bool) -> None:
        self._store = store
        self._cache = PrefixCache(store)
        self._deterministic = deterministic
        self._share_prefixes = share_prefixes

    def start(self, group: SequenceGroup) -> Allocation | None:
        """Allocates a slot for a group's next sequence; None while there is no space."""
        request = group.request
        size = self._size(len(request.prompt), request.longest)
        if (source := group.prompt_source) is not None:
            slot = self._reserve(size)
            if slot is None:
                return None
            self._store.copy(source.slot, slot, len(request.prompt))
            return Allocation(slot, len(request.prompt))
        if not self._deterministic:
            group.digests = self._digests(request, request.prompt)
        allocation = self._with_prefix(group.digests[: group.next_scored_row // BLOCK], size)
        if allocation is not None and group.started == 0:
            group.cache_hit_tokens = allocation.computed
        return allocation

    def resume(self, sequence: RunningSequence) -> Allocation | None:
        """Allocates a slot for a preempted sequence; None while there is no space."""
        group = sequence.group
        size = self._size(len(sequence.tokens), group.request.longest)
        usable = len(sequence.tokens) - 1 if group.first_tokens else group.next_scored_row
        return self._with_prefix((sequence.digests or group.digests)[: usable // BLOCK], size)

    def grow(self, sequence: RunningSequence) -> bool:
        """Makes space for the tokens that are due, moving the slot if it must; False if there is not enough."""
        slot, needed = sequence.slot, sequence.computed + sequence.due
        if needed <= slot.length:
            return True
        size = self._size(needed, sequence.group.request.longest)
        for rows in (size, needed):
            if (extended := self._store.extend(slot, rows)) is not None:
                sequence.slot = extended
                break
        else:
            moved = self._reserve(size)
            if moved is None:
                return False
            self._store.copy(slot, moved, sequence.computed)
            self._store.release(slot)
            sequence.slot = moved
        if sequence.cached_prefix is not None:
            sequence.cached_prefix.slot = sequence.slot
        return True

    def share_prompt(self, sequence: RunningSequence) -> None:
        """Lets other requests copy the prompt of a sequence that has just computed it."""
        group = sequence.group
        digests = group.digests[: sequence.computed // BLOCK]
        if digests and sequence.cached_prefix is None and self._cache.find(digests[-1:]) is None:
            sequence.cached_prefix = self._cache.add(sequence.slot, digests)

    def end(self, sequence: RunningSequence) -> None:
        """Takes back the slot of a sequence that has ended well or is paused; its tokens stay cached while they can."""
        self._stop_sharing(sequence)
        if self._deterministic:
            self._store.release(sequence.slot)
            return
        computed = sequence.tokens[: sequence.computed]
        known = sequence.group.digests[: len(computed) // BLOCK]
        sequence.digests = self._digests(sequence.group.request, computed, known)
        self._cache.keep(sequence.slot, sequence.digests)

    def release(self, sequence: RunningSequence) -> None:
        """Takes back the slot of a sequence, and keeps nothing of what is in it."""
        self._stop_sharing(sequence)
        self._store.release(sequence.slot)

    def forget_cached_prefixes(self) -> None:
        """Frees the rows of every cached prefix that no running sequence uses."""
        while self._cache.evict():
            pass

    def _digests(
        self, request: GenerationRequest, tokens: Sequence[int], known: Sequence[bytes] = ()
    ) -> tuple[bytes, ...]:
        tenant = "" if self._share_prefixes else request.tenant
        return block_digests(tenant, request.adapter, tokens, known)

    def _stop_sharing(self, sequence: RunningSequence) -> None:
        if sequence.cached_prefix is not None:
            self._cache.drop(sequence.cached_prefix)
            sequence.cached_prefix = None

    def _with_prefix(self, digests: Sequence[bytes], size: int) -> Allocation | None:
        """A slot that holds as many of these blocks as are cached."""
        found = self._cache.find(digests)
        if found is not None:
            prefix, count = found
            with self._cache.pinned(prefix):
                slot = self._reserve(size)
                if slot is not None:
                    self._store.copy(prefix.slot, slot, count)
                    return Allocation(slot, count)
        slot = self._reserve(size)
        return Allocation(slot, 0) if slot is not None else None

    def _reserve(self, rows: int) -> Slot | None:
        while (slot := self._store.reserve(rows)) is None and self._cache.evict():
            pass
        return slot

    def _size(self, tokens: int, longest: int) -> int:
        """Rows for a sequence that has so many tokens now, and may have at most `longest`."""
        return longest if self._deterministic else min(longest, tokens + max(LEAST_GROWTH, tokens // 2))
