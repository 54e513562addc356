"""Every process of a platform: one Valkey, two gateways, two trainers, two samplers; each can be killed and comes back.

The Python processes are forked off a server that has imported what they need, so that one is back in a fraction of a
second; from there on each is what `tinker-platform` runs.
"""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import redis
import torch

from services.cli.embedded_redis import find_server
from services.core.catalog.api_keys import ApiKeys
from services.core.config import Settings
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from testing.platform import free_port
from testing.waiting import wait_until
from tinker_proto.internal.v1 import job_pb2

Kind = Literal["valkey", "gateway", "trainer", "sampler"]
KINDS: tuple[Kind, ...] = ("valkey", "gateway", "trainer", "sampler")
BASE_MODEL = "tiny/lm"
LEASE_S = 1.0
START_TIMEOUT_S = 60.0
TENANTS = ("alice", "bob", "carol")
SETTINGS: Mapping[str, Any] = {
    "lease_seconds": LEASE_S,
    "deterministic": True,
    "snapshot_steps": 3,
    "snapshot_log_entries": 24,
    "snapshot_share": 0.2,
}


class Site:
    """All processes over one data directory."""

    def __init__(
        self,
        model_dir: Path,
        data_dir: Path,
        settings: Mapping[str, Any] = SETTINGS,
        constants: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            model_dir: the base model.
            data_dir: of all processes.
            settings: of all services.
            constants: by their full names, what the processes have in place of the platform's: lifetimes that would
                outlast a trial.
        """
        self._settings = settings
        self._constants = dict(constants)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["services.trainer.main", "services.sampler.main", "services.gateway.main"]
        )
        self._model = f"{BASE_MODEL}={model_dir}"
        self.data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self._socket = Path(tempfile.mkdtemp(prefix="tinker-chaos-")) / "valkey.sock"
        self.gateway_ports = (free_port(), free_port())
        self.http_ports = (free_port(), free_port())
        self._valkey: subprocess.Popen[bytes] | None = None
        self._processes: dict[tuple[Kind, int], BaseProcess] = {}

    @property
    def redis_url(self) -> str:
        """Stays the same over a restart of Valkey."""
        return f"unix://{self._socket}"

    @property
    def process_ids(self) -> dict[str, int]:
        """Of everything that runs, by `<kind>-<index>`."""
        found = {f"{kind}-{index}": process.pid for (kind, index), process in self._processes.items()}
        found["valkey-0"] = self._valkey.pid if self._valkey is not None else None
        return {name: pid for name, pid in found.items() if pid is not None}

    def start(self) -> dict[str, str]:
        """Starts everything and waits until it can be used; returns an API key for each tenant."""
        self._start_valkey()
        for kind in ("gateway", "trainer", "sampler"):
            for index in range(2):
                self._start(kind, index)
        keys = asyncio.run(self._make_keys())
        with redis.Redis.from_url(self.redis_url) as commands:

            def is_complete() -> bool:
                packed = commands.hgetall(keyspace.WORKERS).values()
                kinds = [job_pb2.WorkerStatus.FromString(status).kind for status in packed]
                return sorted(kinds) == sorted([job_pb2.WORKER_KIND_TRAINER, job_pb2.WORKER_KIND_SAMPLER] * 2)

            wait_until(is_complete, timeout_s=START_TIMEOUT_S, what="the start of all workers")
        return keys

    def kill(self, kind: Kind, index: int) -> None:
        """Kills a process with SIGKILL and starts it again."""
        if kind == "valkey":
            assert self._valkey is not None
            self._valkey.kill()
            self._valkey.wait()
            self._start_valkey()
            return
        process = self._processes[kind, index]
        process.kill()
        process.join()
        self._start(kind, index)

    def pause(self, kind: Kind, index: int, seconds: float) -> None:
        """Stops a process with SIGSTOP for a while."""
        pid = self._valkey.pid if kind == "valkey" and self._valkey else self._processes[kind, index].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def revive(self) -> list[str]:
        """Starts again what has ended on its own; names it."""
        ended = [(key, process) for key, process in self._processes.items() if process.exitcode is not None]
        for (kind, index), _ in ended:
            self._start(kind, index)
        return [f"{kind} {index} (exit code {process.exitcode})" for (kind, index), process in ended]

    def stop(self) -> None:
        """Kills everything."""
        for process in self._processes.values():
            process.kill()
            process.join()
        if self._valkey is not None:
            self._valkey.kill()
            self._valkey.wait()

    def _start(self, kind: Kind, index: int) -> None:
        values: dict[str, Any] = {**self._settings, "redis_url": self.redis_url, "data_dir": self.data_dir}
        if kind == "gateway":
            values |= {"grpc_port": self.gateway_ports[index], "http_port": self.http_ports[index]}
        log = str(self.data_dir / f"{kind}-{index}.log")
        process = self._context.Process(target=_serve, args=(kind, values, self._constants, self._model, log))
        process.start()
        self._processes[kind, index] = process

    def _start_valkey(self) -> None:
        directory = self.data_dir / "valkey"
        directory.mkdir(exist_ok=True)
        options = {"port": "0", "unixsocket": str(self._socket), "dir": str(directory), "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with open(self.data_dir / "valkey.log", "ab") as log:
            self._valkey = subprocess.Popen([find_server(), *words], stdout=log, stderr=log)

        def answers() -> bool:
            try:
                with redis.Redis.from_url(self.redis_url) as commands:
                    return bool(commands.ping())
            except redis.RedisError:
                return False

        wait_until(answers, timeout_s=START_TIMEOUT_S, what="the start of Valkey")

    async def _make_keys(self) -> dict[str, str]:
        connection = RedisConnection.open(self.redis_url)
        try:
            return {tenant: (await ApiKeys(connection).create(tenant))[0] for tenant in TENANTS}
        finally:
            await connection.close()


def _serve(kind: Kind, values: dict[str, Any], constants: dict[str, Any], base_model: str, log: str) -> None:
    from services.gateway.main import serve as serve_gateway
    from services.sampler.main import serve as serve_sampler
    from services.trainer.main import serve as serve_trainer

    with open(log, "a") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    settings = Settings(**values)
    if kind == "gateway":
        asyncio.run(serve_gateway(settings))
    else:
        asyncio.run({"trainer": serve_trainer, "sampler": serve_sampler}[kind](settings, [base_model]))
