"""Where snapshots of training runs live: one directory each, visible whole or not at all, never changed afterwards.

`<root>/<training_run_id>/<seq_id>-<epoch>`: the state after an operation, written under a lease. Holders of different
leases never write to the same place. Which snapshots count is recorded in Redis, behind a check of the epoch; what lies
here beside them is left over from a holder that died or lost its lease, and the next one removes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.core.files import PARTIAL_PREFIX, sync_directory, sync_tree


@dataclass(frozen=True)
class SnapshotName:
    """Which snapshot of a run."""

    seq_id: int
    """The last operation whose effect it has."""

    epoch: int
    """Of the lease under which it was written."""

    def __str__(self) -> str:
        return f"{self.seq_id}-{self.epoch}"

    @classmethod
    def parse(cls, name: str) -> SnapshotName:
        """Reads a name as it is written."""
        seq_id, epoch = name.split("-")
        return cls(int(seq_id), int(epoch))


class SnapshotStore:
    """Snapshot directories below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def write(self, run: str, name: SnapshotName) -> Iterator[Path]:
        """Yields an empty directory to fill; on a clean exit it is the snapshot, on an exception it is gone.

        Raises:
            OSError: the disk does not take it.
        """
        target = self.path(run, name)
        partial = target.with_name(f"{PARTIAL_PREFIX}{name}")
        partial.mkdir(parents=True)
        try:
            yield partial
            sync_tree(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_directory(target.parent)
        sync_directory(self._root)

    def path(self, run: str, name: SnapshotName) -> Path:
        """The directory of a snapshot, whether it is there or not."""
        return self._root / run / str(name)

    def keep_only(self, run: str, kept: Collection[SnapshotName], epoch: int) -> None:
        """Removes what holders of leases up to `epoch` have left of a run, except the snapshots that are kept."""
        run_directory = self._root / run
        if not run_directory.is_dir():
            return
        for directory in run_directory.iterdir():
            name = SnapshotName.parse(directory.name.removeprefix(PARTIAL_PREFIX))
            if name.epoch <= epoch and directory.name not in map(str, kept):
                shutil.rmtree(directory, ignore_errors=True)
