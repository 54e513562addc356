"""Curves in the terminal and as a picture."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from services.cli import entry
from services.cli.curves import Curve, curves_of, draw, write_png
from services.cli.steps import Step


def step(number: int, loss: float | None, gap: float | None = None) -> Step:
    return Step(number, datetime(2026, 1, 31, tzinfo=UTC), loss, 1.0 / number, 1e-4, 64, 0.5, gap)


def test_each_quantity_that_was_measured_is_a_curve_without_its_gaps() -> None:
    by_title = {
        curve.title: curve for curve in curves_of([step(1, 3.0), step(2, math.nan), step(3, None), step(4, 2.0)])
    }
    assert by_title["loss (sum)"] == Curve("loss (sum)", [1, 4], [3.0, 2.0])
    assert by_title["tokens per step"].steps == [1, 2, 3, 4]
    assert not [title for title in by_title if "gap" in title], "nothing measured it"


def rows_of(drawn: str) -> list[str]:
    """The Braille cells, line by line from the top."""
    return [line[12:] for line in drawn.splitlines() if line[11:12] in "┤│"]


def test_a_falling_line_falls_from_corner_to_corner_and_fits_the_terminal() -> None:
    drawn = draw(Curve("loss", list(range(1, 101)), [100.0 - i for i in range(100)]), width_cells=60)
    starts = [len(row) - len(row.lstrip("\u2800")) for row in rows_of(drawn)]
    assert starts == sorted(set(starts)), "every row begins further to the right"
    assert ord(rows_of(drawn)[0][0]) & 0x01, "the first step is the dot at the top left"
    assert ord(rows_of(drawn)[-1][-1]) & 0x80, "and the last the dot at the bottom right"
    assert max(map(len, drawn.splitlines())) <= 60
    assert drawn.splitlines()[0].strip() == "loss"
    assert drawn.splitlines()[-1].split() == ["step", "1", "100"]


def test_a_jump_at_the_last_step_is_seen() -> None:
    drawn = draw(Curve("loss", list(range(1000)), [0.0] * 999 + [1.0]), width_cells=60)
    assert ord(rows_of(drawn)[0][-1]) & 0x08, "the dot at the top right"


def test_one_step_and_a_constant_can_be_drawn() -> None:
    for curve in (Curve("learning rate", [7], [1e-4]), Curve("loss", [1, 2, 3], [0.0, 0.0, 0.0])):
        drawn = draw(curve, width_cells=10)
        assert any(row.strip("\u2800") for row in rows_of(drawn)), "something is drawn"
    assert "0.0001" in draw(Curve("learning rate", [7], [1e-4]), width_cells=80)


def test_the_picture_has_a_panel_for_each_curve(tmp_path: Path) -> None:
    from matplotlib import image

    curves = curves_of([step(number, 5.0 / number, gap=0.01) for number in range(1, 50)])
    write_png(curves, "run", tmp_path / "six.png")
    write_png(curves[:1], "run", tmp_path / "one.png")
    six, one = image.imread(tmp_path / "six.png"), image.imread(tmp_path / "one.png")
    assert six.shape[0] > one.shape[0]
    assert six.shape[1] == pytest.approx(3 * one.shape[1], abs=3)
    thirds = np.array_split(six[:, :, 0], 3, axis=1)
    assert all((third < 0.9).any() for third in thirds), "something is drawn in every column"


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_matplotlib() -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
        error = ModuleNotFoundError("no", name="matplotlib.backends.backend_agg")
        raise error

    monkeypatch.setattr("services.cli.main.main", without_matplotlib)
    with pytest.raises(SystemExit, match=r"needs matplotlib.*pip install .*\[plot\]"):
        entry.main()
