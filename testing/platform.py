"""A whole platform as a user runs it: `tinker-platform up` in a process of its own, on loopback."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from testing.waiting import wait_until

API_KEY = "tml-test-key-of-the-first-tenant"
BASE_MODEL = "tiny/lm"
START_TIMEOUT_S = 120


def free_port() -> int:
    """A port that nobody else takes: below those that connections get, and not of another worker of pytest-xdist."""
    first = 10_000 * (1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2)
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", first + secrets.randbelow(10_000)))
            return int(probe.getsockname()[1])


@dataclass
class Platform:
    """One `up` over one data directory."""

    model_dir: Path
    data_dir: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    base_model: str = BASE_MODEL
    grpc_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    output: IO[str] | None = None

    @property
    def url(self) -> str:
        """What a client takes as `base_url`."""
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def address(self) -> str:
        """Host and port of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def start(self) -> None:
        """Starts and waits for the line `ready`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
        environment |= {"TINKER_API_KEY": API_KEY, "OMP_NUM_THREADS": "1", "TINKER_LEASE_SECONDS": "2"}
        environment |= self.variables
        command = [
            sys.executable,
            "-m",
            "services.cli.main",
            "up",
            "--base-model",
            f"{self.base_model}={self.model_dir}",
        ]
        ports = ["--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port)]
        self.data_dir.mkdir(parents=True, exist_ok=True)
        log = self.data_dir.parent / "up.log"
        self.output = open(log, "a+")  # noqa: SIM115
        start = self.output.seek(0, os.SEEK_END)
        self.process = subprocess.Popen(
            [*command, "--data-dir", str(self.data_dir), *ports],
            env=environment,
            stdout=self.output,
            stderr=self.output,
        )

        def is_ready() -> bool:
            assert self.process is not None
            written = log.read_text()[start:]
            assert self.process.poll() is None, f"up ended: {written}"
            return any(line.startswith("ready") for line in written.splitlines())

        wait_until(is_ready, timeout_s=START_TIMEOUT_S, what="ready")

    def stop(self) -> int:
        """Stops as Ctrl-C does; returns the exit code."""
        assert self.process is not None
        assert self.output is not None
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        self.output.close()
        return code

    def child(self, *words: str) -> psutil.Process:
        """The one child process whose command line has all of `words`."""
        assert self.process is not None
        found = [
            child
            for child in psutil.Process(self.process.pid).children()
            if all(any(word in part for part in child.cmdline()) for word in words)
        ]
        assert len(found) == 1, f"{len(found)} children have {words}"
        return found[0]

    def kill(self, *words: str) -> None:
        """Kills a child with SIGKILL and waits until `up` has started another in its place."""
        killed = self.child(*words)
        killed.kill()

        def is_replaced() -> bool:
            try:
                return bool(self.child(*words).pid != killed.pid)
            except (AssertionError, psutil.Error):
                return False

        wait_until(is_replaced, what=f"a new {words}")
