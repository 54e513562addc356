"""Recovery state of a run: snapshots count when they are recorded, and the log is trimmed with its blobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.core.errors import DataLossError
from services.core.queue import keyspace
from services.core.queue.payloads import Payloads
from services.core.queue.recovery_state import RecoveryStates, source_write
from services.core.queue.run_log import FencedError, Lease
from services.core.storage.blobs import BlobStore
from services.core.storage.local import LocalStorage
from services.core.storage.snapshot_store import SnapshotName, SnapshotStore
from tests.core.queue_parts import LEASE_MS, RUN, Queues
from tinker_proto.v1 import training_pb2


@pytest.fixture
def recovery_states(queues: Queues, data_dir: Path) -> RecoveryStates:
    return RecoveryStates(queues.connection, Payloads(BlobStore(LocalStorage(data_dir))))


async def lease_of(queues: Queues) -> Lease:
    lease = await queues.logs.claim("w", RUN, "0-1", LEASE_MS)
    assert lease is not None
    return lease


def job_blobs(data_dir: Path) -> list[Path]:
    return [path for path in data_dir.rglob("jobs/*/*") if path.is_file()]


async def test_a_new_run_has_no_recovery_state(queues: Queues, recovery_states: RecoveryStates) -> None:
    recovery = await recovery_states.read(RUN)
    assert (recovery.done_seq_id, recovery.first_seq_id, recovery.snapshots) == (-1, 0, ())
    await queues.enqueue(0)
    assert (await recovery_states.read(RUN)).first_seq_id == 0


async def test_recorded_snapshots_are_there_in_order(queues: Queues, recovery_states: RecoveryStates) -> None:
    names = (SnapshotName(7, 2), SnapshotName(3, 1))
    await recovery_states.record_snapshots(await lease_of(queues), names)
    assert (await recovery_states.read(RUN)).snapshots == names


async def test_an_owner_whose_lease_has_moved_records_and_trims_nothing(
    queues: Queues, recovery_states: RecoveryStates
) -> None:
    await queues.enqueue(0)
    old = await lease_of(queues)
    new = await lease_of(queues)
    await recovery_states.record_snapshots(new, [SnapshotName(3, new.epoch)])
    with pytest.raises(FencedError):
        await recovery_states.record_snapshots(old, [SnapshotName(4, old.epoch)])
    with pytest.raises(FencedError):
        await recovery_states.trim(old, 0)
    recovery = await recovery_states.read(RUN)
    assert recovery.snapshots == (SnapshotName(3, new.epoch),)
    assert recovery.first_seq_id == 0


async def test_trimming_takes_log_blobs_and_replay_data_and_nothing_behind(
    queues: Queues, recovery_states: RecoveryStates, data_dir: Path
) -> None:
    lease = await lease_of(queues)
    for seq_id in range(250):
        if seq_id == 100:
            await queues.finish(lease, 99)
        await queues.enqueue(seq_id, size=100_000 if seq_id in {5, 240} else 0)
        if seq_id > 100:
            await queues.finish(lease, seq_id)
    for seq_id in (3, 245):
        await queues.connection.commands.sadd(keyspace.run_skipped(RUN), seq_id)
        await queues.connection.commands.execute_command(*source_write(RUN, seq_id, f"location{seq_id}"))
    assert len(job_blobs(data_dir)) == 2
    await recovery_states.trim(lease, 230)
    recovery = await recovery_states.read(RUN)
    assert recovery.first_seq_id == 231
    assert recovery.skipped == {245}
    assert recovery.sources == {245: "location245"}
    assert len(job_blobs(data_dir)) == 1
    await recovery_states.trim(lease, 249)
    assert (await recovery_states.read(RUN)).first_seq_id == 250, "behind the last that is done: nothing is left"
    await queues.enqueue(250)
    assert (await recovery_states.read(RUN)).first_seq_id == 250, "and the log goes on"


async def test_the_location_of_a_loaded_checkpoint_is_recorded_with_the_result(
    queues: Queues, recovery_states: RecoveryStates
) -> None:
    await queues.enqueue(0)
    lease = await lease_of(queues)
    result = await queues.operations.result(training_pb2.LoadStateResponse(path="p"))
    await queues.logs.complete(lease, 0, result, [source_write(RUN, 0, "there")])
    assert (await recovery_states.read(RUN)).sources == {0: "there"}


def test_a_snapshot_is_visible_whole_or_not_at_all(tmp_path: Path) -> None:
    store, name = SnapshotStore(LocalStorage(tmp_path)), SnapshotName(3, 1)

    def write_half() -> None:
        with store.write(RUN, name) as directory:
            (directory / "half").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        write_half()
    with pytest.raises(DataLossError, match="3-1 is missing"):
        store.open(RUN, name)
    with store.write(RUN, name) as directory:
        (directory / "file").write_text("content")
        with pytest.raises(DataLossError):
            store.open(RUN, name)
    assert (store.open(RUN, name) / "file").read_text() == "content"


def test_what_older_holders_left_is_removed_and_newer_files_stay(tmp_path: Path) -> None:
    store = SnapshotStore(LocalStorage(tmp_path))
    kept, left, newer = SnapshotName(3, 1), SnapshotName(9, 1), SnapshotName(12, 3)
    for name in (kept, left, newer):
        with store.write(RUN, name) as directory:
            (directory / "file").touch()
    store.keep_only(RUN, [kept], epoch=2)
    assert {path.name for path in (tmp_path / "snapshots" / RUN).iterdir()} == {str(kept), str(newer)}
