"""A trainer's engine whose passes are recorded."""

from __future__ import annotations

from collections.abc import Sequence

from services.core.errors import PlatformError
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import PassJob, PassResult


class WatchedEngine(LocalTrainerEngine):
    """An engine that remembers which runs shared each pass."""

    def __init__(self, base: BaseModel, *, row_tokens: int) -> None:
        super().__init__(base, row_tokens=row_tokens)
        self.passes: list[list[str]] = []

    def run_pass(self, work: Sequence[PassJob], *, row_tokens: int | None = None) -> list[PassResult | PlatformError]:
        """Records the runs of the pass, and computes it."""
        self.passes.append([item.training_run_id for item in work])
        return super().run_pass(work, row_tokens=row_tokens)
