"""Store of snapshots of training runs: one directory each, visible whole or not at all, never changed afterwards.

`snapshots/<training_run_id>/<seq_id>-<epoch>`: the state after an operation, written under a lease, so holders of
different leases never write to the same directory. Redis records which snapshots count, after a check of the epoch; all
others are left from a holder that died or lost its lease, and the next holder removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.core.errors import DataLossError
from services.core.storage.interface import Storage

ROOT = "snapshots"


@dataclass(frozen=True)
class SnapshotName:
    """Name of a snapshot of a run."""

    seq_id: int
    """The last operation that it includes."""

    epoch: int
    """Epoch of the lease under which it was written."""

    def __str__(self) -> str:
        return f"{self.seq_id}-{self.epoch}"

    @classmethod
    def parse(cls, name: str) -> SnapshotName:
        """Reads a name as it is written."""
        seq_id, epoch = name.split("-")
        return cls(int(seq_id), int(epoch))


class SnapshotStore:
    """Snapshot directories of one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @contextmanager
    def write(self, run: str, name: SnapshotName) -> Iterator[Path]:
        """Yields an empty directory to fill; on a clean exit it is the snapshot, on an exception it is gone.

        Raises:
            ResourceExhaustedError, UnavailableError: the storage is full, or cannot be reached.
        """
        with self._storage.write_directory(_key(run, name)) as directory:
            yield directory

    def open(self, run: str, name: SnapshotName) -> Path:
        """The directory of a snapshot on this machine's disk.

        Raises:
            DataLossError: it is gone, or was damaged on the way.
            UnavailableError: the storage cannot be reached.
        """
        key = _key(run, name)
        try:
            return self._storage.open_directory(key)
        except FileNotFoundError:
            raise DataLossError(f"{key} is missing", reason="SNAPSHOT_MISSING") from None

    def keep_only(self, run: str, kept: Collection[SnapshotName], epoch: int) -> None:
        """Removes what holders of leases up to `epoch` have left of a run, except the snapshots that are kept."""
        for stored in list(self._storage.directories(f"{ROOT}/{run}")):
            name = SnapshotName.parse(stored.key.rpartition("/")[2])
            if name.epoch <= epoch and name not in kept:
                self._storage.delete_directory(stored.key)

    def remove(self, run: str) -> None:
        """Removes all snapshots of a run that is gone."""
        for stored in list(self._storage.directories(f"{ROOT}/{run}")):
            self._storage.delete_directory(stored.key)


def _key(run: str, name: SnapshotName) -> str:
    return f"{ROOT}/{run}/{name}"
