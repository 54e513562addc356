"""What a laptop installs is enough: the commands of users need no part of the platform, and say what they lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from services.cli.entry import EXTRAS
from services.core.installation import install_command
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL

RUN_WITHOUT = """
import sys
for name in {absent}:
    sys.modules[name] = None
from services.cli.entry import main
main()
"""


def run_without(absent: list[str], platform: LoopbackPlatform, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN_WITHOUT.format(absent=absent), *arguments]
    environment = {"PATH": os.environ["PATH"], "TINKER_GRPC_URL": platform.url, "TINKER_API_KEY": KEY}
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=60)


def packages_of(*extras: str) -> list[str]:
    return [package for package, extra in EXTRAS.items() if extra in extras]


def test_a_wheel_has_the_platform_and_nothing_that_only_a_checkout_needs() -> None:
    files = WheelBuilder(str(Path(__file__).parents[2])).recurse_included_files()
    assert {file.distribution_path.split("/")[0] for file in files} == {"services", "tinker_client", "tinker_proto"}


def test_the_client_and_the_extra_cli_are_enough(platform: LoopbackPlatform) -> None:
    absent = [package for package in packages_of("gateway", "worker", "plot") if package != "pydantic"]  # typer's
    assert {"redis", "torch", "starlette", "grpc_health"} <= set(absent)
    done = run_without(absent, platform, "model", "list")
    assert done.returncode == 0, done.stderr
    assert MODEL in done.stdout


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("redis", ["keys", "list"]),
        ("pydantic_settings", ["gateway", "--help"]),
        ("pydantic_settings", ["settings"]),
        ("typer", ["model", "list"]),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    platform: LoopbackPlatform, package: str, arguments: list[str]
) -> None:
    failed = run_without([package], platform, *arguments)
    assert failed.returncode == 1
    assert f"[{EXTRAS[package]}]'" in failed.stderr
    assert "Traceback" not in failed.stderr


class Installed(PathDistribution):
    """An installation by its metadata."""

    def __init__(self, directory: Path, origin: dict[str, object] | None) -> None:
        metadata = directory / "tinker_platform-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.4\nName: tinker-platform\nVersion: 0.1.0\n"
            "Requires-Dist: numpy>=2\n"
            "Requires-Dist: rich>=14; extra == 'cli'\n"
            "Requires-Dist: redis>=8.0; extra == 'gateway'\n"
            "Requires-Dist: tinker-platform[cli]; extra == 'gateway'\n"
        )
        if origin is not None:
            (metadata / "direct_url.json").write_text(json.dumps(origin))
        super().__init__(metadata)


def test_an_extra_is_installed_from_where_the_platform_came(tmp_path: Path) -> None:
    checkout, wheel = tmp_path / "my checkout", tmp_path / "tinker_platform-0.1.0-py3-none-any.whl"
    checkout.mkdir()
    (checkout / "constraints.txt").write_text("")
    wheel.write_text("")
    origins = {
        "editable": {"url": checkout.as_uri(), "dir_info": {"editable": True}},
        "wheel": {"url": wheel.as_uri(), "archive_info": {}},
        "gone": {"url": (tmp_path / "removed.whl").as_uri(), "archive_info": {}},
        "index": None,
    }
    commands = {}
    for name, origin in origins.items():
        (tmp_path / name).mkdir()
        commands[name] = install_command("gateway", Installed(tmp_path / name, origin))
    assert commands["editable"] == f"pip install -c '{checkout}/constraints.txt' -e '{checkout}[gateway]'"
    assert commands["wheel"] == f"pip install '{wheel}[gateway]'"
    assert commands["gone"] == commands["index"] == "pip install 'redis>=8.0' 'rich>=14'"
