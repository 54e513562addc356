"""A device with little memory, which a machine of any size can stand in for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from services.trainer.engine.local import LocalTrainerEngine


@contextmanager
def small_memory(engine: LocalTrainerEngine, most_tokens: int) -> Iterator[list[int]]:
    """A device on which longer rows run out of memory; yields the lengths of all rows that were tried."""
    rows: list[int] = []
    _ = engine.memory.activations  # weighs rows of its own, which the model's memory is not counted for

    def check(_: Any, arguments: Any, options: dict[str, Any]) -> None:
        rows.append(options["input_ids"].shape[1])
        if rows[-1] > most_tokens:
            raise torch.OutOfMemoryError("no memory for this row")

    hook = engine.base.trunk.register_forward_pre_hook(check, with_kwargs=True)
    yield rows
    hook.remove()
