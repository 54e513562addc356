"""Installation of a missing part of the platform: from the checkout or the wheel that the platform came from."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import Distribution, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGE = "tinker-platform"


def install_command(extra: str, package: Distribution | None = None) -> str:
    """The command that adds an extra to this installation.

    The package index is never asked for the platform itself: the name there may be somebody else's.

    Args:
        extra: name in pyproject.toml's optional-dependencies.
        package: this installation; None: the one that is running.
    """
    package = package or distribution(PACKAGE)
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    path = Path(unquote(urlsplit(origin.get("url", "")).path))
    if not origin.get("url", "").startswith("file:") or not path.exists():
        return shlex.join(["pip", "install", *_requirements(package, extra)])
    options = ["-c", str(path / "constraints.txt")] if (path / "constraints.txt").is_file() else []
    if origin.get("dir_info", {}).get("editable"):
        options.append("-e")
    return shlex.join(["pip", "install", *options, f"{path}[{extra}]"])


def _requirements(package: Distribution, extra: str) -> list[str]:
    """What an extra requires, the extras that it includes taken apart; without the conditions on the Python version."""
    found: list[str] = []
    for line in package.requires or []:
        requirement, _, marker = line.partition(";")
        if f"extra == '{extra}'" not in marker.replace('"', "'"):
            continue
        requirement = requirement.replace(" ", "").strip()
        if requirement.startswith(f"{PACKAGE}["):
            for included in requirement.partition("[")[2].rstrip("]").split(","):
                found += _requirements(package, included)
        else:
            found.append(requirement)
    return found
