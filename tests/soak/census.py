"""What there is at one moment: memory of processes, keys and their memory in Redis, entries of streams, files."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from services.core.queue import keyspace
from services.core.storage.local import OWNED
from tests.chaos.site import BASE_MODEL, Site

MIB = 1 << 20
WEIGHED = 500
"""Keys of a prefix whose memory is looked at, at most; the others are taken to be like them."""

STREAMS = {
    "events": keyspace.EVENTS,
    "dead": keyspace.DEAD,
    "cancelled": keyspace.CANCELLED,
    "place": keyspace.waiting_runs(BASE_MODEL),
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
        counts, some = _count_keys(commands)
        return Census(
            at_s=time.monotonic(),
            rss_mib={name: psutil.Process(pid).memory_info().rss / MIB for name, pid in processes.items()},
            redis_mib=commands.info("memory")["used_memory"] / MIB,
            key_mib={prefix: _weight(commands, keys) * counts[prefix] / MIB for prefix, keys in some.items()},
            keys=counts,
            entries={name: commands.xlen(key) for name, key in STREAMS.items()},
            files={name: _size(site.data_dir / name) for name in (*OWNED, "valkey")},
        )


def keys_by_prefix(commands: Any) -> dict[str, list[bytes]]:
    """All keys, by what stands before the name of what they are about."""
    found = defaultdict(list)
    for key in set(commands.scan_iter(count=10_000)):
        found[_prefix(key)].append(key)
    return dict(found)


def _count_keys(commands: Any) -> tuple[dict[str, int], dict[str, list[bytes]]]:
    """How many keys there are by prefix, and some of each; not all of them, which would weigh here what is weighed."""
    counts: Counter[str] = Counter()
    some: defaultdict[str, list[bytes]] = defaultdict(list)
    for key in commands.scan_iter(count=1_000):
        prefix = _prefix(key)
        counts[prefix] += 1
        if len(some[prefix]) < WEIGHED:
            some[prefix].append(key)
    return dict(counts), dict(some)


def _prefix(key: bytes) -> str:
    return key.decode().removeprefix(keyspace.PREFIX).partition(":")[0]


def _weight(commands: Any, keys: list[bytes]) -> float:
    """Mean memory of keys in bytes."""
    pipeline = commands.pipeline(transaction=False)
    for key in keys:
        pipeline.memory_usage(key)
    return sum(weight or 0 for weight in pipeline.execute()) / len(keys)


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
