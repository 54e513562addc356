"""The command line as users have it: the real command in a process of its own, against a real platform."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from tinker_client import types

STEPS = 4
COMMAND = str(Path(sys.executable).with_name("tinker-platform"))
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints(tokens=[5, 6, 7, 8]),
    loss_fn_inputs={"target_tokens": [6, 7, 8, 9], "weights": [0.0, 1.0, 1.0, 1.0]},
)


@dataclass(frozen=True)
class Shell:
    """A user's terminal, in a directory of its own."""

    platform: Platform
    directory: Path

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": os.environ["PATH"], "TINKER_GRPC_URL": self.platform.url, "TINKER_API_KEY": API_KEY}
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.directory,
            env=own | environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def json(self, *arguments: str) -> Any:
        done = self.run("-f", "json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def shell(platform: Platform, tmp_path: Path) -> Shell:
    return Shell(platform, tmp_path)


@pytest.fixture(scope="module")
def trained(platform: Platform) -> tuple[str, list[float]]:
    """A run of four steps with two training checkpoints and one for sampling; its id and its losses."""
    with tinker.ServiceClient({"purpose": "try"}, base_url=platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=7, user_metadata={"project": "lamp"})
        losses = []
        for _ in range(STEPS):
            losses.append(training.forward_backward([DATUM], "cross_entropy").result().metrics["loss:sum"])
            training.optim_step(types.AdamParams(learning_rate=1e-3)).result()
        for name in ("first", "second"):
            training.save_state(name).result()
        training.save_weights_for_sampler("lamp").result()
        return training.model_id, losses


def test_a_run_and_how_it_came_along(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, losses = trained
    assert run in [item["training_run_id"] for item in shell.json("run", "list", "--limit", "0")["runs"]]
    info = shell.json("run", "info", run)
    assert info["user_metadata"] == {"project": "lamp"}
    assert info["last_checkpoint"] == f"tinker://{run}/weights/second"
    assert info["last_sampler_checkpoint"] == f"tinker://{run}/sampler_weights/lamp"
    latest = info["latest_step"]
    assert (latest["step"], latest["tokens"]) == (STEPS, 4)
    assert latest["loss"] == pytest.approx(losses[-1])
    assert latest["learning_rate"] == 1e-3
    assert latest["grad_norm"] > 0
    assert latest["seconds"] > 0
    assert latest["sampler_trainer_gap"] is None, "cross_entropy does not measure it"


def test_the_gap_between_sampler_and_trainer_is_in_a_runs_history(shell: Shell) -> None:
    """Zero where the policy that sampled is the one that is trained; else KL's estimate, here exp(d) - 1 - d."""
    prompt, standing_still = [5, 6, 7], types.AdamParams(learning_rate=0.0)
    with tinker.ServiceClient(base_url=shell.platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        sampling = training.save_weights_and_get_sampling_client("now")
        params = types.SamplingParams(max_tokens=8, seed=1, stop=[])
        (sampled,) = sampling.sample(types.ModelInput.from_ints(prompt), 1, params).result().sequences
        tokens, gaps = [*prompt, *sampled.tokens], []
        for moved in (0.0, 0.5):
            inputs = {
                "target_tokens": tokens[1:],
                "logprobs": [0.0, 0.0, *(logprob - moved for logprob in sampled.logprobs)],
                "advantages": [0.0, 0.0, *[1.0] * len(sampled.tokens)],
            }
            datum = types.Datum(types.ModelInput.from_ints(tokens[:-1]), inputs)
            training.forward_backward([datum], "importance_sampling")
            training.optim_step(standing_still).result()
            gaps.append(shell.json("run", "info", training.model_id)["latest_step"]["sampler_trainer_gap"])
    assert gaps == pytest.approx([0.0, math.exp(0.5) - 1.5], abs=1e-5)


def test_curves_in_the_terminal_and_as_a_picture(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, losses = trained
    drawn = shell.run("run", "info", run, "--plot", "--png", "curves.png", COLUMNS="70")
    assert drawn.returncode == 0, drawn.stderr
    plot = drawn.stdout.split("loss (sum)\n")[1]
    assert f"{losses[0]:.4g}" in plot
    assert f"{losses[-1]:.4g}" in plot
    assert "gradient norm" in drawn.stdout
    assert (shell.directory / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_life_of_a_checkpoint(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, _ = trained
    path = f"tinker://{run}/weights/first"
    listed = shell.run("checkpoint", "list", "--run-id", run)
    assert [line.split()[-1] for line in listed.stdout.splitlines()[1:]] == [
        f"tinker://{run}/sampler_weights/lamp",
        f"tinker://{run}/weights/second",
        path,
    ]
    assert shell.json("checkpoint", "publish", path)["public"] is True
    assert shell.json("checkpoint", "info", path)["public"] is True
    assert shell.json("checkpoint", "unpublish", path)["public"] is False
    expires = datetime.fromisoformat(shell.json("checkpoint", "set-ttl", path, "--ttl", "7200")["expires_at"])
    made = datetime.fromisoformat(shell.json("checkpoint", "info", path)["time"])
    assert timedelta(0) <= expires - made - timedelta(hours=2) < timedelta(minutes=5)
    assert shell.json("checkpoint", "set-ttl", path, "--remove")["expires_at"] is None
    refused = shell.run("checkpoint", "set-ttl", path, "--ttl", "1")
    assert (refused.returncode, "ttl_seconds" in refused.stderr) == (2, True)


def test_deleting_checkpoints(shell: Shell, platform: Platform) -> None:
    with tinker.ServiceClient(base_url=platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=2, seed=1)
        paths = [training.save_state(f"step-{index}").result().path for index in range(3)]
        sampler = training.save_weights_for_sampler("s").result().path
    run = training.model_id
    asked = shell.run("checkpoint", "delete", "--run-id", run, "--type", "weights", stdin="n\n")
    assert (asked.returncode, asked.stderr.count("?")) == (1, 1)
    gone = shell.run("checkpoint", "delete", "--run-id", run, "--type", "weights", "-y")
    assert (gone.returncode, sorted(gone.stdout.split()[1::2])) == (0, sorted(paths))
    assert [item["tinker_path"] for item in shell.json("checkpoint", "list", "--run-id", run)["checkpoints"]] == [
        sampler
    ]
    again = shell.run("checkpoint", "delete", paths[0], "-y")
    assert (again.returncode, "there is no" in again.stderr) == (3, True)


def test_an_adapter_leaves_the_platform_and_comes_back(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, _ = trained
    path = f"tinker://{run}/sampler_weights/lamp"
    fetched = shell.json("checkpoint", "download", path)
    directory = shell.directory / fetched["destination"]
    assert directory.name == f"{run.replace(':', '-')}_lamp"
    sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
    assert set(sizes) == {"adapter_config.json", "adapter_model.safetensors"}
    assert fetched["file_size_bytes"] == sum(sizes.values())
    options = ("--name", "back", "--ttl", "7200", "--label", "from=lamp")
    imported = shell.json("checkpoint", "import", directory.name, *options)
    assert imported["training_run"]["base_model"] == BASE_MODEL, "the adapter names it"
    info = shell.json("checkpoint", "info", imported["path"])
    assert (info["checkpoint_id"], info["user_metadata"]) == ("weights/back", {"from": "lamp"})
    assert info["expires_at"] is not None
    assert shell.run("checkpoint", "download", imported["path"], "-o", "again").returncode == 0
    weights = "adapter_model.safetensors"
    assert (shell.directory / "again" / weights).read_bytes() == (directory / weights).read_bytes()


def test_what_is_in_the_way_is_left_alone_unless_forced(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, _ = trained
    path = f"tinker://{run}/sampler_weights/lamp"
    mine = shell.directory / "lamp" / "adapter_model.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    (mine.parent / "notes.txt").write_text("keep")
    refused = shell.run("checkpoint", "download", path, "-o", "lamp")
    assert (refused.returncode, "other content" in refused.stderr) == (1, True)
    assert mine.read_bytes() == b"mine"
    assert shell.run("checkpoint", "download", path, "-o", "lamp", "--force").returncode == 0
    assert mine.stat().st_size > 4
    assert (mine.parent / "notes.txt").read_text() == "keep"
    assert [item.name for item in shell.directory.iterdir()] == ["lamp"], "nothing is left beside it"


def test_a_merged_model_is_a_model_directory(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, _ = trained
    merged = shell.json("checkpoint", "merge", f"tinker://{run}/sampler_weights/lamp", "-o", "model")
    files = {file.name: file.stat().st_size for file in (shell.directory / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert merged["file_size_bytes"] == sum(files.values())


def test_an_adapter_that_does_not_fit_is_refused(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, _ = trained
    shell.run("checkpoint", "download", f"tinker://{run}/sampler_weights/lamp", "-o", "lamp")
    config = shell.directory / "lamp" / "adapter_config.json"
    config.write_text(config.read_text().replace(BASE_MODEL, "other/lm"))
    refused = shell.run("checkpoint", "import", "lamp", "--base-model", BASE_MODEL)
    assert (refused.returncode, "other/lm" in refused.stderr) == (2, True)
    renamed = shell.run("checkpoint", "import", "lamp", "--base-model", BASE_MODEL, "--rename-base-model")
    assert renamed.returncode == 0, renamed.stderr
    assert shell.run("checkpoint", "import", "nowhere").returncode == 2
    config.write_text("{")
    nameless = shell.run("checkpoint", "import", "lamp")
    assert (nameless.returncode, "--base-model" in nameless.stderr) == (2, True)
    assert shell.run("checkpoint", "import", "lamp", "--label", "novalue").returncode == 2


def test_sessions_and_models(shell: Shell, trained: tuple[str, list[float]]) -> None:
    run, _ = trained
    session = run.split(":")[0]
    listed = {item["session_id"]: item for item in shell.json("session", "list", "--limit", "0")["sessions"]}
    assert listed[session]["user_metadata"] == {"purpose": "try"}
    info = shell.json("session", "info", session)
    assert info["training_run_ids"] == [run]
    assert info["end_time"] is not None, "the client has closed"
    (model,) = shell.json("model", "list", "tiny")["models"]
    assert (model["model_name"], model["trainable"], model["sampleable"]) == (BASE_MODEL, True, True)


def test_what_is_not_there_or_not_allowed(shell: Shell, trained: tuple[str, list[float]]) -> None:
    missing = shell.run("run", "info", "nowhere:train:0")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr.startswith("Error: ")
    assert "Traceback" not in missing.stderr
    assert shell.run("run", "list", TINKER_API_KEY="tml-of-nobody").returncode == 4
    assert shell.run("checkpoint", "info", "tinker://a/weights/../b").returncode == 2


def test_a_reader_that_has_enough_ends_a_list_in_silence(shell: Shell, trained: tuple[str, list[float]]) -> None:
    environment = {"TINKER_GRPC_URL": shell.platform.url, "TINKER_API_KEY": API_KEY}
    piped = f"{COMMAND} checkpoint list --limit 0 | true"
    done = subprocess.run(
        ["bash", "-c", piped], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""


def test_the_platform_of_this_directory_is_found(shell: Shell, platform: Platform) -> None:
    found = shell.run("model", "list", TINKER_GRPC_URL="", TINKER_DATA_DIR=str(platform.data_dir))
    assert BASE_MODEL in found.stdout
