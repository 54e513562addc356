"""What a benchmark of the trainer prints: one row for each target, measured against wanted, and how it is measured."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table


class Targets:
    """The table."""

    def __init__(self) -> None:
        self._console = Console(width=140)
        self._table = Table("target", "what", "wanted", "measured", "spread", "")

    def report(self, target: str, what: str, wanted: float, values: Sequence[float], *, at_most: bool = False) -> None:
        """Adds a row: the median of what was measured against what is wanted."""
        middle = statistics.median(values)
        met = middle <= wanted if at_most else middle >= wanted
        sign = "≤" if at_most else "≥"
        spread = f"{min(values):.3g} to {max(values):.3g}"
        self._table.add_row(target, what, f"{sign} {wanted:.3g}", f"{middle:.3g}", spread, "met" if met else "MISSED")
        self._console.print(f"{target} {what}: {middle:.3g} (wanted {sign} {wanted:.3g}; {spread})")

    def note(self, target: str, what: str, values: Sequence[float]) -> None:
        """Adds a row that has no target."""
        spread = f"{min(values):.3g} to {max(values):.3g}"
        self._table.add_row(target, what, "", f"{statistics.median(values):.3g}", spread, "")
        self._console.print(f"{target} {what}: {statistics.median(values):.3g} ({spread})")

    def print(self) -> None:
        """The whole table."""
        self._console.print(self._table)


def seconds(call: Callable[[], object]) -> float:
    """CPU time of a call."""
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def ratios(ours: Callable[[], object], opponent: Callable[[], object], repeats: int) -> list[float]:
    """Opponent's CPU time over ours, once for each repetition, after a first one that does not count."""
    ours()
    opponent()
    return [seconds(opponent) / seconds(ours) for _ in range(repeats)]
