"""docs/modules.md is what the docstrings say, and the paths that documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testing.module_map import first_sentence, modules, page

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
RIDDLES = ("What", "Where", "Who", "Whether", "How", "When")


def test_the_page_of_modules_is_made_from_the_docstrings() -> None:
    assert page() == (ROOT / "docs/modules.md").read_text()


@pytest.mark.parametrize("module", [path for paths in modules().values() for path in paths], ids=str)
def test_a_docstring_names_its_module_first(module: Path) -> None:
    assert not first_sentence(module).startswith(tuple(f"{word} " for word in RIDDLES))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_files_that_a_document_names_exist(document: Path) -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)+\.(?:py|lua|proto|md))`", document.read_text()))
    roots = (ROOT, ROOT / "services", ROOT / "services/gateway", ROOT / "services/core")
    assert [name for name in sorted(named) if not any((root / name).is_file() for root in roots)] == []
