"""The releases of the official SDK that are tested: the newest in this environment, the others beside it.

`make test` runs the newest, the one before and the oldest; `make sdk-versions` the last of every minor release.

python -m tests.http.sdk_versions    fetches what is missing
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RELEASES = (
    "0.38.0",
    "0.36.0",
    "0.35.0",
    "0.34.0",
    "0.33.1",
    "0.32.0",
    "0.31.0",
    "0.30.4",
    "0.29.1",
    "0.28.1",
    "0.27.2",
    "0.26.2",
    "0.25.0",
    "0.24.1",
    "0.23.4",
    "0.22.7",
)
"""The last of every minor release since the first that can send losses as protobuf."""

NEWEST, PREVIOUS, OLDEST = RELEASES[0], RELEASES[1], RELEASES[-1]
ALL = os.environ.get("SDK_VERSIONS") == "all"
VERSIONS = RELEASES if ALL else (NEWEST, PREVIOUS, OLDEST)
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


def published() -> list[str]:
    """The last of every minor release on the package index since the oldest that is tested, newest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", "tinker", "--disable-pip-version-check"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in listed.splitlines() if line.startswith("Available versions: "))
    numbers = [tuple(map(int, version.split("."))) for version in line.partition(": ")[2].split(", ")]
    last: dict[tuple[int, ...], tuple[int, ...]] = {}
    for number in sorted(numbers):
        last[number[:2]] = number
    oldest = tuple(map(int, OLDEST.split(".")))[:2]
    return [".".join(map(str, last[minor])) for minor in sorted(last, reverse=True) if minor >= oldest]


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
