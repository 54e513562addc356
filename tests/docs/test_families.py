"""docs/families.md is what the rows say."""

from __future__ import annotations

from pathlib import Path

from testing.family_table import page


def test_the_page_is_up_to_date() -> None:
    written = Path(__file__).parents[2] / "docs" / "families.md"
    assert written.read_text() == page(), "python -m testing.family_table > docs/families.md"
