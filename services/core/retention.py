"""Retention of finished operations, their results, the files of exports, sessions and runs."""

from __future__ import annotations

from datetime import timedelta

KEEP_FINISHED = timedelta(hours=24)
KEEP_FINISHED_MS = KEEP_FINISHED // timedelta(milliseconds=1)

KEEP_SESSIONS = timedelta(days=30)
"""After a session has ended, or was last seen; and after a sampling session was last used."""

KEEP_IDLE_RUNS = timedelta(days=365)
"""After the last request of a training run that has no checkpoint."""
