"""When a snapshot is due."""

from __future__ import annotations

import pytest

from services.trainer.snapshot_policy import Progress, SnapshotPolicy

POLICY = SnapshotPolicy(steps=10, seconds=60.0, log_entries=100, share=0.02)
SAVED = Progress(4, changes=1)


def after(*kinds: str, changed: bool = True) -> Progress:
    now = SAVED
    for kind in kinds:
        now = now.after(now.seq_id + 1, changed=changed, stepped=changed and kind == "optim_step")
    return now


def test_an_unchanged_run_is_never_due_by_time() -> None:
    assert POLICY.urgency(SAVED, SAVED, seconds=1e6) == 0
    assert POLICY.urgency(SAVED, after(*["forward"] * 50, changed=False), seconds=1e6) == 0.5


def test_a_long_log_makes_a_snapshot_due_also_without_a_change() -> None:
    assert POLICY.urgency(SAVED, after(*["forward"] * 100, changed=False), seconds=0) == 1


def test_steps_and_seconds_count_from_the_last_snapshot() -> None:
    assert POLICY.urgency(SAVED, after(*["forward_backward", "optim_step"] * 10), seconds=0) == 1
    assert POLICY.urgency(SAVED, after(*["forward_backward", "optim_step"] * 9), seconds=0) < 1
    assert POLICY.urgency(SAVED, after("forward_backward"), seconds=59) < 1
    assert POLICY.urgency(SAVED, after("forward_backward"), seconds=60) == 1


def test_a_step_that_failed_is_none() -> None:
    assert POLICY.urgency(SAVED, after(*["optim_step"] * 10, changed=False), seconds=1e6) < 1


def test_the_pause_keeps_snapshots_to_their_share() -> None:
    assert 0.5 / (0.5 + POLICY.pause(0.5)) == pytest.approx(POLICY.share)
