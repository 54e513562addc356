"""The inside of a native engine, for tests and benchmarks. The sampler itself does not use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.sampler.engine.kv import KVStore, Slot


@dataclass(frozen=True)
class Inspection:
    """A native engine's inside at one moment; `kv_store` is the store itself, the rest are copies."""

    kv_store: KVStore
    free_ranges: tuple[Slot, ...]
    """The KV store's rows that nothing uses, as ascending ranges that do not touch."""

    adapter_users: Mapping[Path, int]
    """Number of requests that use each loaded adapter."""

    preemptions: int
    """Number of times that a sequence has lost its slot to an older one, or to another tenant."""
