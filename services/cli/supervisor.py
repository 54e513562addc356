"""The children of `up`: started, restarted when they die, given up when that does not help, and stopped together."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from services.cli import processes
from services.cli.embedded_redis import EmbeddedRedis
from services.cli.exit_code import ExitCode
from services.cli.full_disk import has_ended_by_it, until_there_is_space
from services.cli.last_words import last_words
from services.core.config import ENV_PREFIX, Settings
from services.core.errors import UnavailableError
from services.core.process.worker_server import host_and_pid
from services.core.process.workers import WorkerDirectory

FIRST_CHANCES = 2
"""Lives of a child that has never served before it is given up."""

CHANCES = 5
"""Lives in a row that end soon, or before it serves, of a child that has served."""

SOON_S = 15.0

StartChild = Callable[[], Awaitable[asyncio.subprocess.Process]]

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Service:
    """One child: its name for people, and its command."""

    name: str
    command: Sequence[str]

    metrics_port: int = 0
    """Port of a worker's metrics; 0: none."""


class Supervisor:
    """Starts children, restarts those that die, and stops all of them."""

    def __init__(self, settings: Settings, logs: Path) -> None:
        self._settings = settings
        self._logs = logs
        self._redis: EmbeddedRedis | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._serving: set[int] = set()
        self._redis_runs = asyncio.Event()
        self._redis_runs.set()

    async def start_redis(self) -> str:
        """Starts the embedded server; returns its URL."""
        redis = EmbeddedRedis(self._settings.data_dir / "redis", self._logs / "redis.log")
        self._redis = redis
        await self._start("redis", redis.start, self._logs / "redis.log")
        self.serves("redis")
        return redis.url

    async def start(self, service: Service, redis_url: str) -> None:
        """Starts a service."""
        environment = _environment(self._settings, redis_url)
        environment[ENV_PREFIX + "METRICS_PORT"] = str(service.metrics_port)
        log = self._logs / f"{service.name.replace('/', '_').replace(' ', '-')}.log"

        async def child() -> asyncio.subprocess.Process:
            return await processes.start(service.command, environment=environment, log=log)

        await self._start(service.name, child, log)

    def serves(self, name: str) -> None:
        """Records that the present process of a child serves."""
        self._serving.add(self._children[name].pid)

    async def serving_workers(self, directory: WorkerDirectory) -> set[str]:
        """Names of the children that have announced themselves as workers, and records them."""
        here = socket.gethostname()
        announced = {pid for host, pid in map(host_and_pid, await directory.names()) if host == here}
        names = {name for name, child in self._children.items() if child.pid in announced}
        for name in names:
            self.serves(name)
        return names

    async def until_failed(self) -> None:
        """Waits until a child is given up.

        Raises:
            UnavailableError: names it, its last words and its log.
        """
        done, _ = await asyncio.wait(self._watches, return_when=asyncio.FIRST_COMPLETED)
        done.pop().result()

    async def stop(self) -> None:
        """Stops everything: services together, Redis after them."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        services = [child for name, child in self._children.items() if name != "redis"]
        grace = self._settings.drain_seconds + 5
        await asyncio.gather(*(processes.stop(child, grace) for child in services))
        if self._redis is not None:
            await self._redis.stop()

    async def _start(self, name: str, child: StartChild, log: Path) -> None:
        console.print(f"starting {name} ...")
        watch = self._watch(name, child, log, _size(log))
        self._children[name] = await child()
        self._watches.append(asyncio.create_task(watch))

    async def _watch(self, name: str, child: StartChild, log: Path, log_start: int) -> None:
        failures, has_served = 0, False
        while True:
            started = time.monotonic()
            process = self._children[name]
            code = await process.wait()
            if name == "redis" and has_ended_by_it(self._settings.data_dir, log, log_start):
                log_start = await self._restart_on_full_disk(child, log)
                continue
            served = process.pid in self._serving
            has_served = has_served or served
            if not self._redis_runs.is_set() and name != "redis":
                failures = 0  # nothing can run without it
                await self._redis_runs.wait()
            else:
                failures = failures + 1 if not served or time.monotonic() - started < SOON_S else 0
            if code == ExitCode.BAD_REQUEST or failures >= (CHANCES if has_served else FIRST_CHANCES):
                what = "keeps failing" if has_served else "cannot start"
                message = f"{name} {what} (exit code {code}): {last_words(log, log_start)} (log: {log})"
                raise UnavailableError(message, reason="SERVICE_FAILED")
            console.print(f"{name} ended with exit code {code}; restarting it")
            await asyncio.sleep(0.2)
            log_start = _size(log)
            self._children[name] = await child()
            if name == "redis":
                self.serves(name)

    async def _restart_on_full_disk(self, child: StartChild, log: Path) -> int:
        """Restarts Redis when there is space, however often that fails; returns where its log goes on."""
        self._redis_runs.clear()
        data_dir = self._settings.data_dir
        console.print(f"the disk of {data_dir} is full: redis has stopped, and starts again when there is space")
        while True:
            await until_there_is_space(data_dir)
            log_start = _size(log)
            try:
                self._children["redis"] = await child()
            except UnavailableError:
                if not has_ended_by_it(data_dir, log, log_start):
                    raise
            else:
                break
        self.serves("redis")
        self._redis_runs.set()
        console.print("redis is up")
        return log_start


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _environment(settings: Settings, redis_url: str) -> dict[str, str]:
    """The children's environment: our settings in full, so that flags reach them too."""
    environment = dict(os.environ)
    for name, value in settings.model_dump(mode="json").items():
        environment[ENV_PREFIX + name.upper()] = str(value)
    environment[ENV_PREFIX + "REDIS_URL"] = redis_url
    environment[ENV_PREFIX + "DATA_DIR"] = str(settings.data_dir.resolve())
    environment.pop("TINKER_API_KEY", None)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # trainer, sampler and gateway share the cores: no spinning
    return environment
