"""Retention of finished operations, their results, and the files of exports."""

from __future__ import annotations

from datetime import timedelta

KEEP_FINISHED = timedelta(hours=24)
KEEP_FINISHED_MS = KEEP_FINISHED // timedelta(milliseconds=1)
