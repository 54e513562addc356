"""Retention of finished operations, their results, the files of exports, sessions and runs."""

from __future__ import annotations

from datetime import timedelta

KEEP_FINISHED = timedelta(hours=24)
KEEP_FINISHED_MS = KEEP_FINISHED // timedelta(milliseconds=1)

KEEP_SESSIONS = timedelta(days=30)
"""After a session has ended, or was last seen; and after a sampling session was last used."""

KEEP_IDLE_RUNS = timedelta(days=365)
"""After the last request of a training run that has no checkpoint."""

KEEP_UNUSED_WEIGHTS = timedelta(minutes=10)
"""After the last use of unnamed weights: their save, a sampling session opened on them, or the end of an operation."""

KEEP_NEWEST_WEIGHTS = 4
"""Newest unnamed weights of a run that are kept without use, for as long as `KEEP_SILENT_SESSION` allows."""

KEEP_SILENT_SESSION = timedelta(hours=1)
"""How long a session that has not ended may be silent before the newest unnamed weights of its runs count as unused."""
