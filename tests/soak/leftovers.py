"""What nobody needs and is there all the same, once a platform has come to rest.

Some things stay by design: records of finished operations for a day (with a time to live), sessions and runs for
ever, two snapshots and the log behind them of every run, and the files of a deleted checkpoint for as long as somebody
pins them. Everything else has to be gone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import redis

from services.core.catalog.garbage import GarbageCollector
from services.core.names import OperationName
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.storage.local import LocalStorage
from services.core.storage.snapshot_store import ROOT as SNAPSHOTS
from tests.chaos.site import TENANTS, Site
from tests.soak.census import STREAMS, keys_by_prefix

WORKERS = 2
"""Of each kind."""

"""As the scripts cap the stream, but for one block of entries."""

PATIENCE_MS = 10_000
"""How long unreferenced, unpinned files may stay before a gateway removes them."""

KEPT_BY_SESSIONS = 10 * len(TENANTS)
"""Deleted checkpoints that the last sessions may keep: those that the HTTP port opens for its callers end later."""

HAVE_LIFETIMES = (
    *("operation", "session", "sampling", "merges", "adapter-holder", "reserved-sampler"),
    *("sampler-room", "sample-vacancy", "wake"),
)
"""Prefixes whose keys go by themselves; of the operations, those that are finished."""


async def leftovers(site: Site) -> list[str]:
    """All of it, by name."""
    connection = RedisConnection.open(site.redis_url)
    storage = LocalStorage(site.data_dir)
    try:
        waste = await GarbageCollector(connection, storage, young=timedelta(0)).find()
        found = [f"{item.kind} {item.key}, {item.size_bytes} bytes" for item in waste]
        found += await _pins(connection)
    finally:
        await connection.close()
    with redis.Redis.from_url(site.redis_url) as commands:
        by_prefix = keys_by_prefix(commands)
        found += _too_many(by_prefix) + _immortal(commands, by_prefix) + _waiting(commands, by_prefix)
        return found + _snapshots(commands, storage)


async def _pins(connection: RedisConnection) -> list[str]:
    """Unreferenced files without a pin, pins of sessions that are gone, and too many pins of those that are not."""
    commands, found, kept_by_sessions = connection.commands, [], 0
    overdue_ms = int(time.time() * 1000) - PATIENCE_MS
    for location, due_ms in await commands.zrange(keyspace.UNREFERENCED, 0, -1, withscores=True):
        members = await commands.smembers(keyspace.PINS + location.decode())
        needs = [b":" in member for member in members if await _needs(commands, member.decode())]
        if not needs and due_ms < overdue_ms:
            found.append(f"unreferenced checkpoint {location.decode()}")
        kept_by_sessions += bool(needs) and not any(needs)
    if kept_by_sessions > KEPT_BY_SESSIONS:
        found.append(f"{kept_by_sessions} unreferenced checkpoints that sessions keep")
    async for key in commands.scan_iter(match=f"{keyspace.PINS}*", count=10_000):
        members = [member.decode() for member in await commands.smembers(key)]
        found += [f"pin of {member} on {key.decode()}" for member in members if not await _needs(commands, member)]
    return found


async def _needs(commands: Any, pinned_by: str) -> bool:
    """Whether a session is open, or an operation may be carried out again."""
    if ":" not in pinned_by:
        return not await commands.hexists(keyspace.session(pinned_by), "ended")
    operation = OperationName.parse(pinned_by)
    return bool(await commands.hexists(keyspace.run_sources(operation.scope), operation.seq_id))


def _too_many(by_prefix: Mapping[str, list[bytes]]) -> list[str]:
    """Prefixes with more keys than there are things that need one."""
    sessions, runs = len(by_prefix.get("session", ())), len(by_prefix.get("meta", ()))
    most = (
        dict.fromkeys(["events", "dead", "cancelled", "workers", "workers-expiry", "api-keys", "expiring", "doomed"], 1)
        | dict.fromkeys(["unnamed-due", "tokens-again"], 1)
        | dict.fromkeys(["download-secret", "identity", "place", "sample", "sample-bell", "sample-pace"], 1)
        | dict.fromkeys(["early", "sample-waiting", "sample-jobs", "sample-shares"], 0)
        | dict.fromkeys(["wake", "sampler-room", "sample-vacancy", "base-models"], WORKERS)
        | dict.fromkeys(["load", "open-sessions"], 1 + len(TENANTS))
        | dict.fromkeys(
            ["api-key", "sessions", "runs", "checkpoints", "samplings", "stored-sizes", "merges"], len(TENANTS)
        )
        | dict.fromkeys(["session", "session-runs", "session-samplings"], sessions)
        | dict.fromkeys(["meta", "own", "run", "log", "skipped", "sources", "metrics", "inflight"], runs)
        | dict.fromkeys(
            ["run-checkpoints", "run-weights", "run-sampler_weights", "run-external_weights", "run-unnamed"], runs
        )
    )
    kept = (
        "sampling",
        "operation",
        "reserved-sampler",
        "adapter-holder",
        "checkpoint",
        "unnamed",
        "pins",
    )  # judged elsewhere
    unknown = sorted(by_prefix.keys() - most.keys() - set(kept))
    counts = [(prefix, len(keys), most[prefix]) for prefix, keys in by_prefix.items() if prefix in most]
    return [f"keys of an unknown prefix: {prefix}" for prefix in unknown] + [
        f"{count} keys {prefix}, where {limit} are enough" for prefix, count, limit in counts if count > limit
    ]


def _immortal(commands: Any, by_prefix: Mapping[str, list[bytes]]) -> list[str]:
    """Keys without a time to live that should have one, and operations that have no end."""
    keys = [key for prefix in HAVE_LIFETIMES for key in by_prefix.get(prefix, [])]
    pipeline = commands.pipeline(transaction=False)
    for key in keys:
        pipeline.ttl(key)
    lifetimes = zip(keys, pipeline.execute(), strict=True)
    return [f"{key.decode()} is there for ever" for key, left in lifetimes if left == -1]  # -2: it is gone by now


def _waiting(commands: Any, by_prefix: Mapping[str, list[bytes]]) -> list[str]:
    """Jobs that are still in a queue, streams above their cap, and more of a log than its snapshots need."""
    lengths = {name: commands.xlen(key) for name, key in STREAMS.items()}
    limits = {"events": keyspace.EVENTS_KEPT + 1000, "dead": 0, "cancelled": 11_000, "sample": 0}
    found = [f"{lengths[name]} entries of {name}" for name, limit in limits.items() if lengths[name] > limit]
    for key in by_prefix["load"]:
        counts = {kind.decode(): int(count) for kind, count in commands.hgetall(key).items()}
        found += [f"{count} {kind} that {key.decode()} counts as waiting" for kind, count in counts.items() if count]
    for key in by_prefix.get("meta", []):
        run = key.decode().removeprefix(keyspace.run_meta(""))
        snapshots = (commands.hget(key, "snapshots") or b"").split()
        first = commands.xrange(keyspace.run_log(run), count=1)
        if len(snapshots) == 2 and first and _seq_id(first[0][0]) <= _seq_id(snapshots[1]):
            found.append(f"log of {run} from {first[0][0].decode()}, with a snapshot {snapshots[1].decode()}")
    return found


def _snapshots(commands: Any, storage: LocalStorage) -> list[str]:
    """Snapshots that are not recorded."""
    found = []
    for stored in storage.directories(SNAPSHOTS):
        _, run, name = stored.key.split("/")
        if name.encode() not in (commands.hget(keyspace.run_meta(run), "snapshots") or b"").split():
            found.append(f"snapshot {stored.key}")
    return found


def _seq_id(position: bytes) -> int:
    return int(position.partition(b"-")[0])
