"""Runs between memory and disk: copied on the device thread, written off it, recorded when they are durable.

A snapshot that cannot be written or recorded changes nothing: the run goes on, and its log stays as long as it is.
Restoring tries the snapshots from the newest to the oldest and leaves the rest to the replay of the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from services.core.errors import DataLossError, NotFoundError, PlatformError
from services.core.names import OperationName
from services.core.process.device_thread import DeviceThread
from services.core.process.metrics import SNAPSHOT_SECONDS
from services.core.queue.recovery_state import RecoveryState, RecoveryStates
from services.core.queue.retry import until_reached
from services.core.queue.run_log import FencedError, Lease
from services.core.storage.snapshot_store import SnapshotName, SnapshotStore
from services.model.fingerprint import BaseModelChangedError
from services.trainer.engine.interface import RunExport, TrainerEngine
from services.trainer.held_run import HeldRun
from services.trainer.snapshot_policy import Progress

_KEPT = 2

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RunCopy:
    """A run's state as it was after an operation."""

    state: RunExport
    progress: Progress


class Snapshots:
    """Takes snapshots of runs and restores runs from them."""

    def __init__(
        self, engine: TrainerEngine, device: DeviceThread, store: SnapshotStore, recovery_states: RecoveryStates
    ) -> None:
        self._engine = engine
        self._device = device
        self._store = store
        self._recovery_states = recovery_states

    async def copy(self, held: HeldRun) -> RunCopy | None:
        """Copies the state of a run that nothing is being done with; None if it has none: its creation has failed."""
        try:
            state = await self._device.run(self._engine.export_run, held.lease.run)
        except NotFoundError:
            return None
        return RunCopy(state, held.progress)

    async def save(self, held: HeldRun, copy: RunCopy) -> bool:
        """Makes a copy the run's newest snapshot, and trims what no snapshot needs; False if the disk refuses.

        Raises:
            FencedError: the lease has moved; nothing of this counts.
        """
        lease, run = held.lease, held.lease.run
        name = SnapshotName(copy.progress.seq_id, lease.epoch)
        try:
            with SNAPSHOT_SECONDS.time():
                await asyncio.to_thread(self._write, run, name, copy.state)
        except (PlatformError, OSError) as error:
            _log.error("snapshot not written", run=run, seq_id=name.seq_id, error=str(error))
            return False
        kept = (name, *held.snapshots)[:_KEPT]
        try:
            await until_reached(lambda: self._recovery_states.record_snapshots(lease, kept))
            held.snapshots, held.saved = kept, copy.progress
            if len(kept) == _KEPT:
                await until_reached(lambda: self._recovery_states.trim(lease, kept[-1].seq_id))
        except FencedError:
            await self._keep_only(lease, held.snapshots)
            raise
        await self._keep_only(lease, kept)
        return True

    async def restore(self, lease: Lease) -> HeldRun:
        """Puts the newest good snapshot of a run into the engine; what came after it is left to the replay."""
        run = lease.run
        recovery = await until_reached(lambda: self._recovery_states.read(run))
        await self._keep_only(lease, recovery.snapshots)
        try:
            return await self._restored(lease, recovery)
        except BaseModelChangedError as error:
            _log.error("run of another base model", run=run, error=error.message)
            return HeldRun.beyond_rescue(lease, recovery, error)  # the run stays as it is, for a trainer of that one

    async def drop(self, run: str) -> None:
        """Frees a run's memory; nothing happens if it has none."""
        await self._device.run(self._engine.drop_run, run)

    async def _restored(self, lease: Lease, recovery: RecoveryState) -> HeldRun:
        """The run of a recovery state.

        Raises:
            BaseModelChangedError: it was trained on another base model.
        """
        run, damage = lease.run, []
        for index, name in enumerate(recovery.snapshots):
            try:
                state = await until_reached(partial(asyncio.to_thread, self._read, run, name))
            except BaseModelChangedError:
                raise
            except PlatformError as error:
                _log.error("snapshot damaged", run=run, seq_id=name.seq_id, error=error.message)
                damage.append(error.message)
                continue
            await self._device.run(self._engine.restore_run, run, state)
            return HeldRun.at(lease, recovery, recovery.snapshots[index:])
        if recovery.first_seq_id > 0 and recovery.done_seq_id >= 0:
            message = f"the run cannot be rebuilt: {'; '.join(damage) or 'it has no snapshot'}"
            return HeldRun.beyond_rescue(lease, recovery, DataLossError(message, reason="RUN_LOST"))
        self._engine.info.fingerprint.check(recovery.base_fingerprint, f"training run {run}")
        return HeldRun.at(lease, recovery, ())

    async def _keep_only(self, lease: Lease, kept: Sequence[SnapshotName]) -> None:
        await until_reached(partial(asyncio.to_thread, self._store.keep_only, lease.run, kept, lease.epoch))

    def _read(self, run: str, name: SnapshotName) -> RunExport:
        return self._engine.read_snapshot(self._store.open(run, name))

    def _write(self, run: str, name: SnapshotName, state: RunExport) -> None:
        with self._store.write(run, name) as directory:
            state.write_snapshot(directory, str(OperationName(run, name.seq_id)))
