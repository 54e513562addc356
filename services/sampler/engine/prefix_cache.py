"""The prefix cache: stored keys and values, found by their tenant, adapter and tokens.

- A cached prefix is a slot whose first rows hold the keys and values of some tokens. While it has users it is not
  evicted; afterwards it stays until its rows are needed, least recently used first.
- Tokens are looked up in whole blocks, by a digest chained from the tenant and the adapter's location on, so that keys
  and values of one tenant or adapter are never found for another: the number of cached tokens is in the answer, and
  would tell a tenant what others have sent. Tokens are content ids (services.core.chunks): equal ids are equal content,
  also where the content is no text.
- A hit is copied, so no running sequence depends on what is evicted.
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
class CachedPrefix:
    """A slot, and the digest of each block of tokens whose keys and values it holds."""

    slot: Slot
    digests: tuple[bytes, ...]
    users: int
    """Sequences that run in the slot or are about to copy from it."""


def block_digests(
    tenant: str, adapter: Path | None, tokens: Sequence[int], start: Sequence[bytes] = ()
) -> tuple[bytes, ...]:
    """The digest of each whole block of `tokens` and of all tokens before it.

    Args:
        tenant: whose prefixes these are; empty where all tenants share them.
        adapter: location of the adapter; None for the base model.
        tokens: content ids from the beginning of a sequence.
        start: digests of the first blocks, if they are known.
    """
    digests = list(start)
    location = str(adapter) if adapter is not None else ""
    root = b"%d:%b%b" % (len(tenant.encode()), tenant.encode(), location.encode())
    last = digests[-1] if digests else hashlib.blake2b(root, digest_size=16).digest()
    for begin in range(len(digests) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        block = array("q", tokens[begin : begin + BLOCK]).tobytes()
        last = hashlib.blake2b(block, digest_size=16, key=last).digest()
        digests.append(last)
    return tuple(digests)


class PrefixCache:
    """Cached prefixes of one KV store."""

    def __init__(self, store: KVStore) -> None:
        self._store = store
        self._by_digest: defaultdict[bytes, dict[CachedPrefix, None]] = defaultdict(dict)
        self._unused: OrderedDict[CachedPrefix, None] = OrderedDict()
        """Cached prefixes without users, least recently used first."""

    def find(self, digests: Sequence[bytes]) -> tuple[CachedPrefix, int] | None:
        """The longest cached prefix among blocks of one sequence, and how many tokens it has; None if there is none."""
        for count in range(len(digests), 0, -1):
            if prefixes := self._by_digest.get(digests[count - 1]):
                return next(reversed(prefixes)), count * BLOCK
        return None

    @contextmanager
    def pinned(self, prefix: CachedPrefix) -> Iterator[None]:
        """Keeps a prefix from being evicted inside the block."""
        prefix.users += 1
        self._unused.pop(prefix, None)
        try:
            yield
        finally:
            self._remove_user(prefix)

    def add(self, slot: Slot, digests: Sequence[bytes]) -> CachedPrefix:
        """Caches what a running sequence has computed, in the slot where it runs.

        The caller changes `slot` when the sequence moves, and drops the prefix before the sequence ends.
        """
        prefix = CachedPrefix(slot, tuple(digests), users=1)
        self._index(prefix)
        return prefix

    def drop(self, prefix: CachedPrefix) -> None:
        """Forgets a prefix, and leaves its slot to the caller."""
        for digest in prefix.digests:
            self._by_digest[digest].pop(prefix, None)
            if not self._by_digest[digest]:
                del self._by_digest[digest]

    def keep(self, slot: Slot, digests: Sequence[bytes]) -> None:
        """Caches the slot of a sequence that has ended; rows behind its last whole block become free."""
        if not digests or any(prefix in self._unused for prefix in self._by_digest.get(digests[-1], ())):
            self._store.release(slot)
            return
        prefix = CachedPrefix(self._store.shrink(slot, len(digests) * BLOCK), tuple(digests), users=1)
        self._index(prefix)
        self._remove_user(prefix)

    def evict(self) -> bool:
        """Frees the rows of the least recently used prefix without users; False if there is none."""
        if not self._unused:
            return False
        prefix, _ = self._unused.popitem(last=False)
        self.drop(prefix)
        self._store.release(prefix.slot)
        return True

    def _index(self, prefix: CachedPrefix) -> None:
        for digest in prefix.digests:
            self._by_digest[digest][prefix] = None

    def _remove_user(self, prefix: CachedPrefix) -> None:
        prefix.users -= 1
        if prefix.users == 0:
            self._unused[prefix] = None
