"""What there is at one moment: memory of processes, keys and their memory in Redis, entries of streams, files."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from services.core import keyspace
from services.core.local_storage import OWNED
from tests.chaos.site import BASE_MODEL, Site

MIB = 1 << 20
WEIGHED = 500
"""Keys of a prefix whose memory is looked at; the others are taken to be like them."""

STREAMS = {
    "events": keyspace.EVENTS,
    "dead": keyspace.DEAD,
    "cancelled": keyspace.CANCELLED,
    "place": keyspace.place(BASE_MODEL),
    "sample": keyspace.sample_queue(BASE_MODEL),
}


@dataclass(frozen=True)
class Census:
    """Counts by what is counted."""

    at_s: float
    rss_mib: Mapping[str, float]
    """By process; the programs' is "clients"."""

    redis_mib: float
    key_mib: Mapping[str, float]
    """Memory of the keys of a prefix, estimated."""

    keys: Mapping[str, int]
    """By prefix."""

    entries: Mapping[str, int]
    """By stream."""

    files: Mapping[str, tuple[int, float]]
    """Files and directories, and MiB, by top-level directory."""

    @property
    def unexplained_mib(self) -> float:
        """What Redis has in memory besides keys."""
        return self.redis_mib - sum(self.key_mib.values())

    def rows(self) -> Iterator[tuple[str, float]]:
        """All of it, as a table has it."""
        yield from ((f"MiB of {name}", size) for name, size in sorted(self.rss_mib.items()))
        yield "MiB in Redis", self.redis_mib
        yield "MiB in Redis, but for keys", self.unexplained_mib
        for prefix, count in sorted(self.keys.items()):
            yield f"keys {prefix}", count
        yield from ((f"MiB of keys {prefix}", size) for prefix, size in sorted(self.key_mib.items()) if size > 0.05)
        yield from ((f"entries of {name}", length) for name, length in self.entries.items())
        for directory, (count, size) in sorted(self.files.items()):
            yield f"files and directories in {directory}", count
            yield f"MiB in {directory}", size


def take_census(site: Site) -> Census:
    """Counts everything of a running platform."""
    processes = site.process_ids | {"clients": os.getpid()}
    with redis.Redis.from_url(site.redis_url) as commands:
        by_prefix = keys_by_prefix(commands)
        return Census(
            at_s=time.monotonic(),
            rss_mib={name: psutil.Process(pid).memory_info().rss / MIB for name, pid in processes.items()},
            redis_mib=commands.info("memory")["used_memory"] / MIB,
            key_mib={prefix: _weight(commands, keys) / MIB for prefix, keys in by_prefix.items()},
            keys={prefix: len(keys) for prefix, keys in by_prefix.items()},
            entries={name: commands.xlen(key) for name, key in STREAMS.items()},
            files={name: _size(site.data_dir / name) for name in (*OWNED, "valkey")},
        )


def keys_by_prefix(commands: Any) -> dict[str, list[bytes]]:
    """All keys, by what stands before the name of what they are about."""
    found = defaultdict(list)
    for key in set(commands.scan_iter(count=10_000)):
        found[key.decode().removeprefix(keyspace.PREFIX).partition(":")[0]].append(key)
    return dict(found)


def _weight(commands: Any, keys: list[bytes]) -> float:
    """Memory of keys in bytes."""
    chosen = keys[:: max(1, len(keys) // WEIGHED)]
    pipeline = commands.pipeline(transaction=False)
    for key in chosen:
        pipeline.memory_usage(key)
    weights = [weight or 0 for weight in pipeline.execute()]
    return sum(weights) / len(weights) * len(keys)


def _size(directory: Path) -> tuple[int, float]:
    """How many files and directories there are in a directory, and their MiB."""
    count, size = 0, 0
    for parent, directories, names in os.walk(directory):
        count += len(directories) + len(names)
        for name in names:
            try:
                size += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return count, size / MIB
