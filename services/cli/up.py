"""`tinker-platform up`: the whole platform on one machine, as child processes under one supervisor.

Each service is the same process as in production. A child that dies is restarted; one that keeps failing stops the
platform with a message that names its log. Ctrl-C and SIGTERM stop the services first and Redis last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from services.cli import processes, state_file
from services.cli.embedded_redis import EmbeddedRedis
from services.cli.exit_code import ExitCode
from services.cli.health import is_serving
from services.core.base_model_names import ServedModel, parse_base_models
from services.core.catalog.api_keys import ApiKeys
from services.core.catalog.identity import Identity
from services.core.config import ENV_PREFIX, Settings
from services.core.errors import AlreadyExistsError, UnavailableError
from services.core.process.server import until_stopped
from services.core.process.workers import KIND_NAMES, WorkerDirectory
from services.core.queue.connection import RedisConnection
from services.core.storage.open import open_storage

FIRST_TENANT = "default"
QUICK_DEATHS = 5
QUICK_DEATH_S = 15.0

StartChild = Callable[[], Awaitable[asyncio.subprocess.Process]]

_console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Service:
    """One child: its name for people, and its command."""

    name: str
    command: Sequence[str]

    metrics_port: int = 0
    """Port of a worker's metrics; 0: none."""


async def run_up(settings: Settings, base_models: Sequence[str]) -> None:
    """Runs the platform until SIGTERM or SIGINT.

    Raises:
        PlatformError: it cannot start, or a service keeps failing; the message says what to do.
    """
    started = time.monotonic()
    models = parse_base_models(base_models)
    _refuse_taken_ports(settings)
    with state_file.lock(settings.data_dir):
        logs = settings.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        async with AsyncExitStack() as stack:
            supervisor = Supervisor(settings, logs)
            stack.push_async_callback(supervisor.stop)
            url = settings.redis_url or await supervisor.start_redis()
            state_file.announce_redis_url(settings.data_dir, url)
            stack.enter_context(state_file.announced_grpc_url(settings.data_dir, settings.host, settings.grpc_port))
            connection = RedisConnection.open(url)
            stack.push_async_callback(connection.close)
            await Identity(connection, open_storage(settings)).check()
            await _first_key(ApiKeys(connection))
            for service in _services(models, settings.metrics_port):
                await supervisor.start(service, url)
            stopped = asyncio.create_task(until_stopped())
            ready = asyncio.create_task(_until_ready(settings, connection, models))
            failed = asyncio.create_task(supervisor.until_failed())
            await asyncio.wait({ready, stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                print(f"ready  grpc://{settings.host}:{settings.grpc_port}  ({time.monotonic() - started:.1f} s)")
                _next_steps(settings)
                sys.stdout.flush()
                await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if failed.done():
                failed.result()
            _console.print("stopping ...")


class Supervisor:
    """Starts children, restarts those that die, and stops all of them."""

    def __init__(self, settings: Settings, logs: Path) -> None:
        self._settings = settings
        self._logs = logs
        self._redis: EmbeddedRedis | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._children: dict[str, asyncio.subprocess.Process] = {}

    async def start_redis(self) -> str:
        """Starts the embedded server; returns its URL."""
        redis = EmbeddedRedis(self._settings.data_dir / "redis", self._logs / "redis.log")
        self._redis = redis
        await self._start("redis", redis.start, self._logs / "redis.log")
        return redis.url

    async def start(self, service: Service, redis_url: str) -> None:
        """Starts a service."""
        environment = _environment(self._settings, redis_url)
        environment[ENV_PREFIX + "METRICS_PORT"] = str(service.metrics_port)
        log = self._logs / f"{service.name.replace('/', '_').replace(' ', '-')}.log"

        async def child() -> asyncio.subprocess.Process:
            return await processes.start(service.command, environment=environment, log=log)

        await self._start(service.name, child, log)

    async def until_failed(self) -> None:
        """Waits until a child keeps failing.

        Raises:
            UnavailableError: names it and its log.
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
        _console.print(f"starting {name} ...")
        self._children[name] = await child()
        self._watches.append(asyncio.create_task(self._watch(name, child, log)))

    async def _watch(self, name: str, child: StartChild, log: Path) -> None:
        quick_deaths = 0
        while True:
            started = time.monotonic()
            code = await self._children[name].wait()
            quick_deaths = quick_deaths + 1 if time.monotonic() - started < QUICK_DEATH_S else 0
            if quick_deaths == QUICK_DEATHS or code == ExitCode.BAD_REQUEST:
                message = f"{name} keeps failing (exit code {code}): {_last_line(log)} (log: {log})"
                raise UnavailableError(message, reason="SERVICE_FAILED")
            _console.print(f"{name} ended with exit code {code}; restarting it")
            await asyncio.sleep(0.2)
            self._children[name] = await child()


def _services(models: Sequence[ServedModel], metrics_port: int) -> list[Service]:
    """The services; workers get metrics ports one after another, from the given one on."""
    command = [sys.executable, "-m", "services.cli.main"]
    services = [Service("gateway", [*command, "gateway"])]
    for model in models:
        options = [word for option in model.options for word in ("--base-model", option)]
        for kind in KIND_NAMES.values():
            port = metrics_port + len(services) - 1 if metrics_port else 0
            services.append(Service(f"{kind} {model.name}", [*command, kind, *options], port))
    return services


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "its log is empty"


def _refuse_taken_ports(settings: Settings) -> None:
    for port in (settings.grpc_port, settings.http_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                message = f"cannot listen on {settings.host}:{port} ({error.strerror}); pass other ports"
                raise UnavailableError(message, reason="PORT_TAKEN") from None


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


async def _first_key(keys: ApiKeys) -> None:
    """Accepts TINKER_API_KEY as a key, or makes one if there is none yet, and prints it."""
    if given := os.environ.get("TINKER_API_KEY"):
        with contextlib.suppress(AlreadyExistsError):
            await keys.create(FIRST_TENANT, "from TINKER_API_KEY", given)
    elif not await keys.list():
        key, _ = await keys.create(FIRST_TENANT, "created by the first start")
        print(f"API key of tenant {FIRST_TENANT}, not shown again:\n\n  export TINKER_API_KEY={key}\n", flush=True)


async def _until_ready(settings: Settings, connection: RedisConnection, models: Sequence[ServedModel]) -> None:
    """Waits until the gateway serves and every base model has a live trainer and a live sampler."""
    awaited = {f"{kind} {model.name}" for kind in KIND_NAMES.values() for model in models} | {"gateway"}
    while awaited:
        live = {f"{KIND_NAMES[status.kind]} {status.base_model}" for status in await WorkerDirectory(connection).live()}
        if "gateway" in awaited and await is_serving(f"{settings.host}:{settings.grpc_port}"):
            live.add("gateway")
        for name in sorted(awaited & live):
            _console.print(f"{name} is up")
        awaited -= live
        await asyncio.sleep(0.1)


def _next_steps(settings: Settings) -> None:
    address = f"{settings.host}:{settings.grpc_port}"
    print(
        f"""
Try it, in another terminal:
  export TINKER_GRPC_URL=grpc://{address} TINKER_API_KEY=...
  tinker-platform model list
  python examples/sft.py
  grpcurl -plaintext -H "x-api-key: $TINKER_API_KEY" {address} tinker.v1.CapabilityService/GetServerCapabilities
Logs: {settings.data_dir}/logs. Ctrl-C stops the platform; the same command resumes it."""
    )
