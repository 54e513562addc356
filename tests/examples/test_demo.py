"""The demo: it shows what it promises, and leaves no process behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from examples import demo
from examples.base_model import make_base_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment(**more: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    return ours | {"OMP_NUM_THREADS": "1"} | more


def test_the_whole_demo_then_reinforcement_learning_then_ctrl_c(tmp_path: Path) -> None:
    make_base_model(tmp_path / "base-model", steps=0)
    terminal, stdin = pty.openpty()
    # Scripts start what they run in the background with Ctrl-C ignored, and children inherit that.
    listen_to_ctrl_c = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--directory", str(tmp_path)]
    with subprocess.Popen(
        command,
        env=environment(),
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,  # noqa: PLW1509
    ) as running:
        try:
            assert running.stdout is not None
            shown = ""
            while "rl.py" not in shown:
                line = running.stdout.readline()
                assert line, f"the demo ended early: {shown}"
                shown += line
            losses = [float(loss) for loss in re.findall(r"loss per token +([\d.]+)", shown)]
            assert losses[-1] < losses[0] / 2
            assert "BEFORE" in shown
            assert "Day 61. Wind" in shown
            assert "grpcurl -plaintext -H 'x-api-key: tml-" in shown

            (exports,) = re.findall(r"export (TINKER_GRPC_URL)=(\S+) (TINKER_API_KEY)=(\S+)", shown)
            learned = subprocess.run(
                [sys.executable, str(EXAMPLES / "rl.py"), "--iterations", "2", "--group-size", "2"],
                env=environment(**dict(zip(exports[::2], exports[1::2], strict=True))),
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert learned.returncode == 0, learned.stderr
            assert len(re.findall(r"iteration +\d+ +reward 0\.\d+", learned.stdout)) == 2

            started = psutil.Process(running.pid).children(recursive=True)
            assert started
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 130
        finally:
            running.terminate()
            os.close(terminal)
            os.close(stdin)
    assert psutil.wait_procs(started, timeout=60)[1] == []


def test_a_child_has_ended_when_its_block_is_left_by_an_error() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(KeyboardInterrupt), demo.child(sleep, {}) as process:
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGTERM


def test_a_command_is_stopped_when_what_it_needs_has_ended() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    platform = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True)
    with pytest.raises(subprocess.CalledProcessError) as failed, platform:
        demo.run(sleep, needs=platform)
    assert failed.value.returncode == 3
    assert failed.value.cmd == platform.args


def test_a_platform_that_ends_before_it_is_ready_is_an_error() -> None:
    command = [sys.executable, "-c", "print('starting'); raise SystemExit(4)"]
    ended = pytest.raises(subprocess.CalledProcessError)
    with ended as failed, demo.child(command, {}, stdout=subprocess.PIPE) as platform:
        demo.wait_until_ready(platform)
    assert failed.value.returncode == 4
