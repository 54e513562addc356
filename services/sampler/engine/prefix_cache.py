"""Keys and values that are stored already, found by the adapter and the tokens that they belong to.

A holding is a slot whose first rows hold the keys and values of some tokens. While it has users it stays put;
afterwards it stays until its rows are needed, least recently used first. Tokens are looked up in whole blocks, by a
digest chained from the adapter's location on: what one adapter computed is never found for another. Tokens are content
ids (services.core.chunks): equal ids are equal content, also where the content is no text. A hit is copied, so nothing
that runs depends on what is dropped here.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.sampler.engine.kv import KVStore, Slot

BLOCK = 16
"""Tokens that are found together."""


@dataclass(eq=False)
class Holding:
    """A slot, and the digest of each block of tokens whose keys and values it holds."""

    slot: Slot
    digests: tuple[bytes, ...]
    users: int
    """Sequences that run in the slot or are about to copy from it."""


def chain(adapter: Path | None, tokens: Sequence[int], start: Sequence[bytes] = ()) -> tuple[bytes, ...]:
    """The digest of each whole block of `tokens` and of all before it; `start` are those that are known."""
    digests = list(start)
    root = str(adapter) if adapter is not None else ""
    last = digests[-1] if digests else hashlib.blake2b(root.encode(), digest_size=16).digest()
    for begin in range(len(digests) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        block = array("q", tokens[begin : begin + BLOCK]).tobytes()
        last = hashlib.blake2b(block, digest_size=16, key=last).digest()
        digests.append(last)
    return tuple(digests)


class PrefixCache:
    """Holdings over one KV store."""

    def __init__(self, store: KVStore) -> None:
        self._store = store
        self._by_digest: defaultdict[bytes, dict[Holding, None]] = defaultdict(dict)
        self._unused: OrderedDict[Holding, None] = OrderedDict()
        """Holdings without users, least recently used first."""

    def find(self, digests: Sequence[bytes]) -> tuple[Holding, int] | None:
        """A holding of as many of the blocks as there are, and how many tokens that is."""
        for count in range(len(digests), 0, -1):
            if holdings := self._by_digest.get(digests[count - 1]):
                return next(reversed(holdings)), count * BLOCK
        return None

    @contextmanager
    def pinned(self, holding: Holding) -> Iterator[None]:
        """Keeps a holding where it is inside the block."""
        holding.users += 1
        self._unused.pop(holding, None)
        try:
            yield
        finally:
            self._let_go(holding)

    def add(self, slot: Slot, digests: Sequence[bytes]) -> Holding:
        """Makes what a running sequence has computed findable; the sequence says when it moves and ends."""
        holding = Holding(slot, tuple(digests), users=1)
        self._index(holding)
        return holding

    def drop(self, holding: Holding) -> None:
        """Forgets a holding whose slot is taken away."""
        for digest in holding.digests:
            self._by_digest[digest].pop(holding, None)
            if not self._by_digest[digest]:
                del self._by_digest[digest]

    def keep(self, slot: Slot, digests: Sequence[bytes]) -> None:
        """Takes over the slot of a sequence that has ended; the rows behind its last whole block are free again."""
        if not digests or any(holding in self._unused for holding in self._by_digest.get(digests[-1], ())):
            self._store.release(slot)
            return
        holding = Holding(self._store.shrink(slot, len(digests) * BLOCK), tuple(digests), users=1)
        self._index(holding)
        self._let_go(holding)

    def evict(self) -> bool:
        """Gives the rows of the least recently used holding back; False if all have users."""
        if not self._unused:
            return False
        holding, _ = self._unused.popitem(last=False)
        self.drop(holding)
        self._store.release(holding.slot)
        return True

    def _index(self, holding: Holding) -> None:
        for digest in holding.digests:
            self._by_digest[digest][holding] = None

    def _let_go(self, holding: Holding) -> None:
        holding.users -= 1
        if holding.users == 0:
            self._unused[holding] = None
