"""What a run's log does not say by itself about its past: how far it is done, and where the past begins.

A run's state is its newest snapshot and the log behind it. A snapshot counts from the moment that its holder records it
here, after its files are on the disk. Two are kept; the log is trimmed only behind the older one, so that a damaged
newest snapshot costs a longer replay and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.core.queue import keyspace, streams
from services.core.queue.connection import RedisConnection, Write
from services.core.queue.payloads import Payloads
from services.core.queue.run_log import FencedError, Lease, decode_entry, entry_position
from services.core.storage.snapshot_store import SnapshotName

_TRIMMED_AT_ONCE = 100


@dataclass(frozen=True)
class RunPast:
    """What a run's new holder has to know."""

    done_seq_id: int
    """Everything up to here has its result; -1 before the first."""

    first_seq_id: int
    """Where the log begins; behind `done_seq_id` if nothing of the past is left of it."""

    snapshots: tuple[SnapshotName, ...]
    """Those that are kept, newest first."""

    skipped: frozenset[int]
    """Operations that changed nothing and are left out of a replay."""

    sources: Mapping[int, str]
    """Where the checkpoints were that operations have loaded: their paths may name others by now, or nothing."""


class RunPasts:
    """The pasts of all runs of one Redis server."""

    def __init__(self, connection: RedisConnection, payloads: Payloads) -> None:
        self._connection = connection
        self._payloads = payloads

    async def read(self, run: str) -> RunPast:
        """A run's past."""
        pipeline = self._connection.commands.pipeline(transaction=True)
        pipeline.hmget(keyspace.run_meta(run), "done_seq", "snapshots")
        pipeline.xrange(keyspace.run_log(run), count=1)
        pipeline.smembers(keyspace.run_skipped(run))
        pipeline.hgetall(keyspace.run_sources(run))
        (done, snapshots), first, skipped, sources = await pipeline.execute()
        done_seq_id = -1 if done is None else int(done)
        return RunPast(
            done_seq_id,
            int(first[0][0].partition(b"-")[0]) if first else done_seq_id + 1,
            tuple(SnapshotName.parse(name) for name in (snapshots or b"").decode().split()),
            frozenset(map(int, skipped)),
            {int(seq_id): location.decode() for seq_id, location in sources.items()},
        )

    async def record_snapshots(self, lease: Lease, kept: Sequence[SnapshotName]) -> None:
        """Says which snapshots are kept, newest first.

        Raises:
            FencedError: the lease has moved.
        """
        keys = [keyspace.run_own(lease.run), keyspace.run_meta(lease.run)]
        if await self._connection.run("record_snapshots", keys, [lease.epoch, " ".join(map(str, kept))]) == b"fenced":
            raise FencedError(lease.run)

    async def trim(self, lease: Lease, last: int) -> None:
        """Forgets a run's log up to seq_id `last`, with the jobs that lie in the blob store.

        Raises:
            FencedError: the lease has moved.
        """
        log, run, position = keyspace.run_log(lease.run), lease.run, entry_position(-1)
        keys = [keyspace.run_own(run), log, keyspace.run_skipped(run), keyspace.run_sources(run)]
        while True:
            entries = await streams.entries(self._connection.commands, log, after=position, count=_TRIMMED_AT_ONCE)
            passed = [decoded for entry in entries if (decoded := decode_entry(entry)).seq_id <= last]
            # Blobs first: whoever finds these entries again after a crash removes the rest.
            for entry in passed:
                await self._payloads.discard(entry.packed_job)
            if passed:
                if await self._connection.run("trim_run", keys, [lease.epoch, passed[-1].seq_id]) == b"fenced":
                    raise FencedError(run)
                position = entry_position(passed[-1].seq_id)
            if len(passed) < _TRIMMED_AT_ONCE:
                return


def source_write(run: str, seq_id: int, location: str) -> Write:
    """The write that remembers which checkpoint an operation has loaded, made visible with its result."""
    return ("HSET", keyspace.run_sources(run), seq_id, location)
