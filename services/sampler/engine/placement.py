"""Which rows of the KV store a sequence computes in: where it starts, how it grows, what stays of it.

A slot begins with room for its tokens and some more, and grows by half when it is full: requests that could become
long do not keep others out. Rows are first taken from what is free, then from cached prefixes, least recently used
first; when that is not enough the engine decides who has to wait.
"""

from __future__ import annotations

from services.sampler.engine.kv import KVStore, Slot
from services.sampler.engine.prefix_cache import BLOCK, PrefixCache, chain
from services.sampler.engine.sequence import Group, Sequence

LEAST_GROWTH = 256


class Placement:
    """Slots of one KV store.

    Args:
        store: the store.
        deterministic: a sequence gets room for all that it may become, and computes all of its prompt itself, so that
            nothing it does depends on what else is in the store.
    """

    def __init__(self, store: KVStore, *, deterministic: bool) -> None:
        self._store = store
        self._cache = PrefixCache(store)
        self._deterministic = deterministic

    def start(self, group: Group) -> tuple[Slot, int] | None:
        """A slot for a group's next sequence, and how many tokens it holds already; None while there is no room."""
        request = group.request
        size = self._size(len(request.prompt), request.longest)
        if (source := group.source) is not None:
            slot = self._reserve(size)
            if slot is not None:
                self._store.copy(source.slot, slot, len(request.prompt))
            return (slot, len(request.prompt)) if slot is not None else None
        if not self._deterministic:
            group.digests = chain(request.adapter, request.prompt)
        placed = self._with_prefix(group, size)
        if placed is not None:
            group.cache_hit_tokens = placed[1]
        return placed

    def resume(self, sequence: Sequence) -> tuple[Slot, int] | None:
        """A slot for a paused sequence, like `start`."""
        size = self._size(len(sequence.tokens), sequence.group.request.longest)
        return self._with_prefix(sequence.group, size)

    def grow(self, sequence: Sequence) -> bool:
        """Makes room for what is due, moving the sequence if it must; False if there is not enough."""
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
        if sequence.holding is not None:
            sequence.holding.slot = sequence.slot
        return True

    def announce(self, sequence: Sequence) -> None:
        """Lets others copy the prompt of a sequence that has just computed it."""
        group = sequence.group
        digests = group.digests[: sequence.computed // BLOCK]
        if digests and sequence.holding is None and self._cache.find(digests[-1:]) is None:
            sequence.holding = self._cache.add(sequence.slot, digests)

    def end(self, sequence: Sequence) -> None:
        """Takes the slot of a sequence that has ended well; what it computed stays for others while there is room."""
        self._withdraw(sequence)
        if self._deterministic:
            self._store.release(sequence.slot)
            return
        computed = sequence.tokens[: sequence.computed]
        self._cache.keep(
            sequence.slot,
            chain(sequence.group.request.adapter, computed, sequence.group.digests[: len(computed) // BLOCK]),
        )

    def release(self, sequence: Sequence) -> None:
        """Takes the slot of a sequence, and keeps nothing of what is in it."""
        self._withdraw(sequence)
        self._store.release(sequence.slot)

    def clear(self) -> None:
        """Forgets every cached prefix."""
        while self._cache.evict():
            pass

    def _withdraw(self, sequence: Sequence) -> None:
        if sequence.holding is not None:
            self._cache.drop(sequence.holding)
            sequence.holding = None

    def _with_prefix(self, group: Group, size: int) -> tuple[Slot, int] | None:
        """A slot that holds as much of the group's prompt as is cached and not needed again."""
        found = self._cache.find(group.digests[: group.next_scored_row // BLOCK])
        if found is not None:
            holding, count = found
            with self._cache.pinned(holding):
                slot = self._reserve(size)
                if slot is not None:
                    self._store.copy(holding.slot, slot, count)
                    return slot, count
        slot = self._reserve(size)
        return (slot, 0) if slot is not None else None

    def _reserve(self, rows: int) -> Slot | None:
        while (slot := self._store.reserve(rows)) is None and self._cache.evict():
            pass
        return slot

    def _size(self, tokens: int, longest: int) -> int:
        """Rows for a sequence that has so many tokens now."""
        return longest if self._deterministic else min(longest, tokens + max(LEAST_GROWTH, tokens // 2))
