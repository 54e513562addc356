"""What the README shows works as it is written, but for the model's name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from tinker_client import types

README = Path(__file__).parents[2] / "README.md"


def test_the_python_programs_run(platform: Platform, tmp_path: Path) -> None:
    program = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    program = program.replace("Qwen/Qwen3-0.6B", BASE_MODEL)
    environment = {"TINKER_GRPC_URL": platform.url, "TINKER_API_KEY": API_KEY}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    steps = [float(line.split()[1]) for line in done.stdout.splitlines()[:10]]
    assert steps == sorted(steps, reverse=True), "the loss falls"


def test_the_commands_of_users_run(platform: Platform, service: tinker.ServiceClient, tmp_path: Path) -> None:
    training = service.create_lora_training_client(BASE_MODEL, rank=2)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6]), loss_fn_inputs={"target_tokens": [6, 7], "weights": [1.0, 1.0]}
    )
    training.forward_backward([datum], "cross_entropy")
    training.optim_step(types.AdamParams(learning_rate=1e-4)).result()
    training.save_weights_for_sampler("lamp").result()
    (block,) = re.findall(r"^## Command line\n.*?```sh\n(.*?)```", README.read_text(), re.DOTALL | re.MULTILINE)
    commands = block.replace("RUN=...", f"RUN={training.model_id}")
    environment = {"TINKER_GRPC_URL": platform.url, "TINKER_API_KEY": API_KEY}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env=environment,
        input="y\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "tinker_client" not in done.stderr, "no trace"
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = re.findall(r"^make lint types test$", README.read_text(), re.MULTILINE)
    assert command in (README.parent / ".ci" / "run").read_text()
