"""docs/settings.md is what the settings are made of.

`python -m services.cli.settings_table > docs/settings.md` writes it anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from services.cli.settings_table import page
from services.core.config import Settings

TEXT = (Path(__file__).parents[2] / "docs/settings.md").read_text()


def test_the_page_is_made_from_the_settings() -> None:
    assert page() == TEXT


def test_every_setting_has_a_row_with_its_variable_and_a_meaning() -> None:
    rows = re.findall(
        r"^\| `([a-z_]+)` \| `(TINKER_[A-Z_]+)` \| [^|]+ \| [^|]* \| [^|]+ \| (.+\.) \| [^|]+ \|$", TEXT, re.M
    )
    assert {(name, variable) for name, variable, _ in rows} == {
        (name, f"TINKER_{name.upper()}") for name in Settings.model_fields
    }
