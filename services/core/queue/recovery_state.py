"""Recovery state of a training run: what a new lease holder needs, beside the log, to rebuild the run.

A run is rebuilt from its newest snapshot and the log after it. A snapshot counts once its holder has recorded it here,
after its files are on the disk. Two are kept; the log is trimmed only up to the older one, so that a damaged newest
snapshot costs a longer replay and nothing else.
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
class RecoveryState:
    """Recovery state of one run."""

    done_seq_id: int
    """Last operation that has its result; -1 before the first."""

    first_seq_id: int
    """First entry of the log; above `done_seq_id` if only entries without a result are left."""

    snapshots: tuple[SnapshotName, ...]
    """Kept snapshots, newest first."""

    skipped: frozenset[int]
    """Operations that changed nothing; a replay leaves them out."""

    sources: Mapping[int, str]
    """Locations of checkpoints that operations have loaded, by seq_id: a path may name another one by now."""

    base_fingerprint: str = ""
    """Fingerprint of the base model that the run was created on; "" if it was not recorded."""


class RecoveryStates:
    """Recovery states of all runs of one Redis server."""

    def __init__(self, connection: RedisConnection, payloads: Payloads) -> None:
        self._connection = connection
        self._payloads = payloads

    async def read(self, run: str) -> RecoveryState:
        """The recovery state of a run."""
        pipeline = self._connection.commands.pipeline(transaction=True)
        pipeline.hmget(keyspace.run_meta(run), "done_seq", "snapshots", "base_fingerprint")
        pipeline.xrange(keyspace.run_log(run), count=1)
        pipeline.smembers(keyspace.run_skipped(run))
        pipeline.hgetall(keyspace.run_sources(run))
        (done, snapshots, fingerprint), first, skipped, sources = await pipeline.execute()
        done_seq_id = -1 if done is None else int(done)
        return RecoveryState(
            done_seq_id,
            int(first[0][0].partition(b"-")[0]) if first else done_seq_id + 1,
            tuple(SnapshotName.parse(name) for name in (snapshots or b"").decode().split()),
            frozenset(map(int, skipped)),
            {int(seq_id): location.decode() for seq_id, location in sources.items()},
            (fingerprint or b"").decode(),
        )

    async def record_snapshots(self, lease: Lease, kept: Sequence[SnapshotName]) -> None:
        """Records which snapshots are kept, newest first.

        Raises:
            FencedError: the lease has moved.
        """
        keys = [keyspace.run_own(lease.run), keyspace.run_meta(lease.run)]
        if await self._connection.run("record_snapshots", keys, [lease.epoch, " ".join(map(str, kept))]) == b"fenced":
            raise FencedError(lease.run)

    async def trim(self, lease: Lease, last: int) -> None:
        """Removes a run's log up to seq_id `last`, and the blobs of its jobs.

        Raises:
            FencedError: the lease has moved.
        """
        log, run, position = keyspace.run_log(lease.run), lease.run, entry_position(-1)
        keys = [keyspace.run_own(run), log, keyspace.run_skipped(run), keyspace.run_sources(run)]
        while True:
            entries = await streams.entries(self._connection.commands, log, after=position, count=_TRIMMED_AT_ONCE)
            passed = [decoded for entry in entries if (decoded := decode_entry(entry)).seq_id <= last]
            # Blobs first: after a crash these entries are found again and the rest is removed.
            for entry in passed:
                await self._payloads.discard(entry.packed_job)
            if passed:
                if await self._connection.run("trim_run", keys, [lease.epoch, passed[-1].seq_id]) == b"fenced":
                    raise FencedError(run)
                position = entry_position(passed[-1].seq_id)
            if len(passed) < _TRIMMED_AT_ONCE:
                return


def fingerprint_write(run: str, fingerprint: str) -> Write:
    """The write that records which base model a run was created on, made visible with the creation's result."""
    return ("HSET", keyspace.run_meta(run), "base_fingerprint", fingerprint)


def source_write(run: str, seq_id: int, location: str) -> Write:
    """The write that records which checkpoint an operation has loaded, made visible with its result."""
    return ("HSET", keyspace.run_sources(run), seq_id, location)
