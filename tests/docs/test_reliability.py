"""docs/reliability.md says what is true: its tests exist, and its reasons are all that the services give."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
PROMISES, REASONS = TEXT.split("## Reasons")


def test_the_tests_that_it_names_exist() -> None:
    named = set(re.findall(r"`(tests/[a-z0-9_/]+\.py)`", PROMISES))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_its_reasons_are_all_that_the_services_give() -> None:
    given = set()
    for source in (ROOT / "services").rglob("*.py"):
        given |= set(re.findall(r'reason(?:: ClassVar\[str\])?"?\s*[=:]\s*"([A-Z_]+)"', source.read_text()))
    assert given == set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", REASONS))
