"""Build hook: generates the protobuf and gRPC stubs from protos/ into tinker_proto/.

The stubs are never in git. Installing the package, editable or not, makes them; `make protos` runs this file directly.
"""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
GENERATED = ("v1", "internal", "sdk")


def generate_stubs(root: Path = ROOT) -> None:
    """Writes the stubs of every .proto file under `root`/protos and their type stubs; replaces what was there."""
    from grpc_tools import protoc

    for name in GENERATED:
        shutil.rmtree(root / "tinker_proto" / name, ignore_errors=True)
    sources = sorted(str(path) for path in (root / "protos").rglob("*.proto"))
    includes = [root / "protos", resources.files("grpc_tools") / "_proto"]
    outputs = ("--python_out", "--grpc_python_out", "--mypy_out", "--mypy_grpc_out")
    bin_dir = Path(sys.executable).parent
    plugins = [
        f"--plugin={name}={found}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (found := shutil.which(name) or shutil.which(name, path=str(bin_dir)))
    ]
    arguments = [
        "protoc",
        *(f"-I{path}" for path in includes),
        *plugins,
        *(f"{output}={root}" for output in outputs),
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed: its message is above")
    for directory in (
        root / "tinker_proto" / "v1",
        root / "tinker_proto" / "internal",
        root / "tinker_proto" / "internal" / "v1",
        root / "tinker_proto" / "sdk",
        root / "tinker_proto" / "sdk" / "v1",
    ):
        (directory / "__init__.py").write_text('"""Generated from protos/; see hatch_build.py."""\n')


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Generates the stubs before every build of a wheel, also an editable one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before the build; see hatchling's BuildHookInterface."""
        if self.target_name == "wheel":
            generate_stubs(Path(self.root))


if __name__ == "__main__":
    generate_stubs()
