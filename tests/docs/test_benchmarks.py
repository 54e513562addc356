"""Benchmarks find what they import: CI does not run them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("services", "testing", "tinker_client", "tinker_proto")
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def imported(module: Path) -> list[tuple[str, str]]:
    """Modules of ours that a file imports names from, with each name."""
    nodes = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.ImportFrom)]
    return [
        (node.module, alias.name)
        for node in nodes
        if node.module and node.module.split(".")[0] in OURS
        for alias in node.names
    ]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_finds_its_imports(benchmark: Path) -> None:
    for module, name in imported(benchmark):
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"
