"""docs/metrics.md and the dashboard name the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import REGISTRY

import services.core.process.metrics  # noqa: F401  defines them

ROOT = Path(__file__).parents[2]


def ours() -> dict[str, tuple[str, str]]:
    """Kind and help by name, as Prometheus sees them."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation)
        for family in REGISTRY.collect()
        if family.name.startswith("tinker_")
    }


def test_the_table_is_what_there_is() -> None:
    rows = re.findall(
        r"^\| `(tinker_[a-z_]+)` \| ([a-z]+) \| [^|]+ \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    assert {name: (kind, text) for name, kind, text in rows} == ours()


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/tinker-platform.json").read_text())
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"tinker_[a-z_]+", target["expr"])
    }
    assert len(dashboard["panels"]) > 6
    assert asked - ours().keys() == set()
