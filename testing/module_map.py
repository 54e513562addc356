"""docs/modules.md from the first sentence of every module's docstring.

`python -m testing.module_map > docs/modules.md` writes the page anew.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("tinker_proto", "tinker_client", "services", "testing")
GENERATED = ("tinker_proto/v1", "tinker_proto/internal", "tinker_proto/sdk")
INTRODUCTION = """# Modules

Every package and module, with the first sentence of its docstring. [architecture.md](architecture.md) says how they
work together. This page is made from the code: `python -m testing.module_map > docs/modules.md`.
"""


def modules() -> dict[Path, list[Path]]:
    """The modules of each package that are not generated, by directory, relative to the root; `__init__.py` first."""
    found: dict[Path, list[Path]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if not str(relative).startswith(GENERATED):
                found.setdefault(relative.parent, []).append(relative)
    return found


def first_sentence(module: Path) -> str:
    """The first paragraph of a module's docstring on one line, up to its first full stop.

    Raises:
        ValueError: the module has no docstring.
    """
    docstring = ast.get_docstring(ast.parse((ROOT / module).read_text()))
    if not docstring:
        raise ValueError(f"{module}: must have a docstring")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()


def page() -> str:
    """The text of docs/modules.md."""
    sections = [INTRODUCTION]
    for directory, paths in modules().items():
        rows = [f"| `{path.name}` | {first_sentence(path)} |" for path in paths if path.name != "__init__.py"]
        about = first_sentence(directory / "__init__.py")
        table = ["", "| module | content |", "|---|---|", *rows] if rows else []
        sections.append("\n".join([f"## `{directory}/`", "", about, *table, ""]))
    return "\n".join(sections)


if __name__ == "__main__":
    print(page(), end="")
