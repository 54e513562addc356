"""When a run needs a snapshot: a pure function of how far it has come since its last one.

A snapshot is due by optimizer steps or by seconds, whichever bounds a replay first, and by the length of the log, which
may grow without any change of the run. A load is due at once: what it has read may be deleted, and then a replay could
not read it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.core.config import Settings

LOADS = frozenset({"create_training_run_from_checkpoint", "import_checkpoint", "load_state"})
"""Requests that read a checkpoint."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come in its holder's memory."""

    seq_id: int
    """The last operation that was carried out; -1 before the first."""

    changes: int = 0
    """Operations that have changed the run, counted from when its holder took it; so are the other two."""

    steps: int = 0
    loads: int = 0

    def after(self, seq_id: int, kind: str, *, changed: bool) -> Progress:
        """The progress after one more operation of this kind."""
        if not changed:
            return Progress(seq_id, self.changes, self.steps, self.loads)
        steps, loads = self.steps + (kind == "optim_step"), self.loads + (kind in LOADS)
        return Progress(seq_id, self.changes + 1, steps, loads)


@dataclass(frozen=True)
class SnapshotPolicy:
    """The limits; see services.core.config."""

    steps: int
    seconds: float
    log_entries: int

    share: float
    """Most of the trainer's time that snapshots which are due may take."""

    @classmethod
    def of(cls, settings: Settings) -> SnapshotPolicy:
        """What the settings say."""
        return cls(
            settings.snapshot_steps, settings.snapshot_seconds, settings.snapshot_log_entries, settings.snapshot_share
        )

    def urgency(self, saved: Progress, now: Progress, seconds: float) -> float:
        """How much a run needs a snapshot: due from 1 on.

        Args:
            saved: its progress at its last snapshot.
            now: its progress.
            seconds: since its last snapshot.
        """
        if now.loads > saved.loads:
            return math.inf
        by_log = (now.seq_id - saved.seq_id) / self.log_entries
        if now.changes == saved.changes:
            return by_log
        return max(by_log, (now.steps - saved.steps) / self.steps, seconds / self.seconds)

    def pause(self, seconds: float) -> float:
        """How long to wait after a snapshot that took so many seconds."""
        return seconds / self.share - seconds
