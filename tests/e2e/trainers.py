"""Trainer processes over one Redis and one data directory, to be killed and stopped at a chosen moment.

They are forked off a server that has imported torch, so that each starts in a fraction of a second; from there on it is
what `tinker-platform trainer` runs.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from services.core.config import Settings
from services.trainer.main import serve

BASE_MODEL = "tiny/lm"
DEADLINE_S = 60


def _serve(settings: dict[str, Any], base_model: str, log: str) -> None:
    with open(log, "a") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    asyncio.run(serve(Settings(**settings), [base_model]))


class Trainers:
    """Starts trainers and ends those that are left."""

    def __init__(self, model_dir: Path, data_dir: Path, redis_url: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["services.trainer.main"])
        self._model_dir = model_dir
        self._data_dir = data_dir
        self._redis_url = redis_url
        self._running: list[BaseProcess] = []

    def start(self, **settings: Any) -> BaseProcess:
        """Starts a trainer; it is not ready yet."""
        values = {"redis_url": self._redis_url, "data_dir": self._data_dir, "lease_seconds": 1.0, **settings}
        self._data_dir.mkdir(parents=True, exist_ok=True)
        arguments = (values, f"{BASE_MODEL}={self._model_dir}", str(self._data_dir / "trainers.log"))
        process = self._context.Process(target=_serve, args=arguments)
        process.start()
        self._running.append(process)
        return process

    def kill(self, process: BaseProcess) -> None:
        """Kills with SIGKILL, if it is not dead already, and waits for the end."""
        process.kill()
        process.join()
        self._running.remove(process)

    def terminate(self, process: BaseProcess) -> int | None:
        """Ends with SIGTERM and waits; returns the exit code."""
        signal_to(process, signal.SIGTERM)
        process.join(DEADLINE_S)
        self._running.remove(process)
        return process.exitcode

    def kill_all(self) -> None:
        """Kills those that are left."""
        for process in list(self._running):
            self.kill(process)


def signal_to(process: BaseProcess, number: signal.Signals) -> None:
    """Sends a signal."""
    assert process.pid is not None
    os.kill(process.pid, number)


def spin_until(condition: Callable[[], bool]) -> None:
    """Asks as often as possible, so that a short moment is not missed."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
