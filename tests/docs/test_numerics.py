"""docs/numerics.md says what becomes of every option of an imported adapter."""

from __future__ import annotations

import re
from pathlib import Path

from services.model.peft_options import OPTIONS

ROOT = Path(__file__).parents[2]


def test_every_option_of_an_imported_adapter_is_in_the_table() -> None:
    (section,) = re.findall(r"^## Imported adapters\n(.*?)^## ", (ROOT / "docs/numerics.md").read_text(), re.M | re.S)
    first_cells = "".join(re.findall(r"^\| ([^|]+) \|", section, re.M))
    assert set(re.findall(r"`(\w+)`", first_cells)) == OPTIONS.keys()
