"""The urgency of a run's next snapshot: a pure function of its progress since the last one.

A snapshot is due by optimizer steps or by seconds, whichever bounds a replay first, and by the length of the log, which
may grow without any change of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.core.config import TrainerSettings


@dataclass(frozen=True)
class Progress:
    """How far a run has come in its holder's memory."""

    seq_id: int
    """The last operation that was carried out; -1 before the first."""

    changes: int = 0
    """Operations that have changed the run since its holder took it."""

    steps: int = 0
    """Optimizer steps among them."""

    def after(self, seq_id: int, *, changed: bool, stepped: bool) -> Progress:
        """The progress after one more operation, which changed the run or not, by an optimizer step or not."""
        return Progress(seq_id, self.changes + int(changed), self.steps + int(stepped))


@dataclass(frozen=True)
class SnapshotPolicy:
    """The limits; see services.core.config."""

    steps: int
    seconds: float
    log_entries: int

    share: float
    """Most of the trainer's time that snapshots which are due may take."""

    @classmethod
    def of(cls, settings: TrainerSettings) -> SnapshotPolicy:
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
        by_log = (now.seq_id - saved.seq_id) / self.log_entries
        if now.changes == saved.changes:
            return by_log
        return max(by_log, (now.steps - saved.steps) / self.steps, seconds / self.seconds)

    def pause(self, seconds: float) -> float:
        """How long to wait after a snapshot that took so many seconds."""
        return seconds / self.share - seconds
