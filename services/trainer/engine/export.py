"""A run's state on its way out of the engine: copied to the CPU's memory, and written from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.model.base import BaseModel
from services.model.manifest import DirectoryKind, Manifest
from services.trainer.engine.checkpoint_files import write_checkpoint
from services.trainer.engine.encryption import AgeEncryption
from services.trainer.engine.interface import CheckpointContent
from services.trainer.engine.run_state import RunState
from services.trainer.engine.snapshot_files import write_snapshot


@dataclass(frozen=True)
class LocalRunExport:
    """Implements RunExport."""

    training_run_id: str
    state: RunState
    base: BaseModel

    def write_checkpoint(
        self, directory: Path, operation: str, content: CheckpointContent, age_recipients: Sequence[str] = ()
    ) -> None:
        """See RunExport."""
        manifest = self._manifest(content, operation)
        encryption = AgeEncryption(age_recipients) if age_recipients else None
        write_checkpoint(directory, self.state, self.base, manifest, encryption)

    def write_snapshot(self, directory: Path, operation: str) -> None:
        """See RunExport."""
        write_snapshot(directory, self.state, self._manifest("snapshot", operation))

    def _manifest(self, kind: DirectoryKind, operation: str) -> Manifest:
        return Manifest(
            kind,
            self.training_run_id,
            self.base.name,
            self.state.config,
            operation,
            base_fingerprint=self.base.fingerprint.value,
        )
