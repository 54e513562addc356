"""What the README shows works as it is written, but for the model's name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.platform import API_KEY, BASE_MODEL, Platform

README = Path(__file__).parents[2] / "README.md"


def test_the_python_program_runs(platform: Platform) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = program.replace("Qwen/Qwen3-0.6B", BASE_MODEL)
    environment = {"TINKER_GRPC_URL": platform.url, "TINKER_API_KEY": API_KEY}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    steps = [float(line.split()[1]) for line in done.stdout.splitlines()[:10]]
    assert steps == sorted(steps, reverse=True), "the loss falls"


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = re.findall(r"^make lint types test$", README.read_text(), re.MULTILINE)
    assert command in (README.parent / ".ci" / "run").read_text()
