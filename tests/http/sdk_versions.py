"""The releases of the official SDK that are tested: the newest in this environment, and the one before beside it.

python -m tests.http.sdk_versions    fetches what is missing
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NEWEST = "0.38.0"
PREVIOUS = "0.36.0"
VERSIONS = (NEWEST, PREVIOUS)
TOUR = Path(__file__).with_name("tour.py")


def directory_of(version: str) -> Path | None:
    """Where a release lies beside this environment's own; fetched on first use."""
    if version == NEWEST:
        return None
    target = Path(sys.prefix) / "sdk" / version
    if not (target / "tinker").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        subprocess.run([*command, f"tinker=={version}"], check=True)
    return target


def run_program(program: Path, version: str, url: str, key: str, *arguments: str) -> list[dict[str, Any]]:
    """Runs a program with a release of the SDK as a user would; the lines that it prints, as JSON."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    environment |= {"TINKER_BASE_URL": url, "TINKER_API_KEY": key}
    if (directory := directory_of(version)) is not None:
        environment["PYTHONPATH"] = str(directory)
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    for release in VERSIONS:
        directory_of(release)
