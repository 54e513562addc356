"""Curves of a run's steps: drawn in the terminal, or as a picture in a PNG file.

One panel for each quantity that was measured; a value that is not finite is left out of its curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.steps import Step

HEIGHT_LINES = 9
_QUANTITIES = {
    "loss": "loss (sum)",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "sampler_trainer_gap": "sampler-trainer gap (nats per token)",
    "tokens": "tokens per step",
    "seconds": "seconds per step",
}
_LABEL_CELLS = 11


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps."""

    title: str
    steps: list[int]
    values: list[float]


def curves_of(steps: Sequence[Step]) -> list[Curve]:
    """One curve for each quantity that was measured."""
    curves = []
    for field, title in _QUANTITIES.items():
        points = [(step.step, getattr(step, field)) for step in steps]
        finite = [(step, float(value)) for step, value in points if value is not None and math.isfinite(value)]
        if finite:
            curves.append(Curve(title, [step for step, _ in finite], [value for _, value in finite]))
    return curves


def draw(curve: Curve, width_cells: int) -> str:
    """A curve in Braille characters, for a terminal of this width: its range on the left, the steps below."""
    import plotille

    (first, last), (low, high) = _limits(curve.steps), _limits(curve.values)
    width = max(width_cells - _LABEL_CELLS - 1, 20)
    # The canvas divides its range by its 2 x 4 dots a cell: so the largest value lies on the last of them.
    past_last = first + (last - first) * (2 * width) / (2 * width - 1)
    past_high = low + (high - low) * (4 * HEIGHT_LINES) / (4 * HEIGHT_LINES - 1)
    canvas = plotille.Canvas(width, HEIGHT_LINES, xmin=first, xmax=past_last, ymin=low, ymax=past_high)
    points = list(zip(curve.steps, curve.values, strict=True))
    for (step, value), (next_step, next_value) in zip(points, points[1:] or points, strict=False):
        canvas.line(step, value, next_step, next_value)
    names = {0: high, HEIGHT_LINES // 2: (high + low) / 2, HEIGHT_LINES - 1: low}
    lines = [
        f"{f'{names[row]:.4g}' if row in names else '':>{_LABEL_CELLS - 1}} {'┤' if row in names else '│'}{cells}"
        for row, cells in enumerate(canvas.plot().splitlines())
    ]
    below = " " * (_LABEL_CELLS + 1)
    ends = f"step {curve.steps[0]}" + f"{curve.steps[-1]}".rjust(width - len(f"step {curve.steps[0]}"))
    return "\n".join([f"{below}{curve.title}", *lines, f"{' ' * _LABEL_CELLS}└{'─' * width}", below + ends])


def write_png(curves: Sequence[Curve], title: str, path: Path) -> None:
    """All curves in one picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for index, curve in enumerate(curves):
        panel = figure.add_subplot(rows, columns, index + 1)
        panel.plot(curve.steps, curve.values, marker="o" if len(curve.steps) < 30 else "", markersize=3, linewidth=1.2)
        panel.set_title(curve.title, fontsize=10)
        panel.set_xlabel("step", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values, widened if it is a point."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    around = abs(low) * 0.1 or 1.0
    return low - around, high + around
