"""`tinker-platform up`: the whole platform on one machine, as child processes under one supervisor.

Each service is the same process as in production. A child that dies is restarted; one that keeps failing stops the
platform with a message that names its log. Ctrl-C and SIGTERM stop the services first and Redis last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from services.cli import state_file
from services.cli.full_disk import refuse_full_disk
from services.cli.health import is_serving
from services.cli.model_check import check_models
from services.cli.supervisor import Service, Supervisor, console
from services.core.base_model_names import ServedModel, parse_base_models
from services.core.catalog.api_keys import KEY_PREFIX, ApiKeys
from services.core.catalog.identity import Identity
from services.core.config import Settings
from services.core.errors import AlreadyExistsError, UnavailableError
from services.core.process.server import until_stopped
from services.core.process.workers import KIND_NAMES, WorkerDirectory
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from services.core.storage.open import open_storage

FIRST_TENANT = "default"
_LOOK_EVERY_S = 2.0


async def run_up(settings: Settings, base_models: Sequence[str]) -> None:
    """Runs the platform until SIGTERM or SIGINT.

    Raises:
        PlatformError: it cannot start, or a service keeps failing; the message says what to do.
    """
    started = time.monotonic()
    models = parse_base_models(base_models)
    check_models(models)
    _refuse_taken_ports(settings)
    refuse_full_disk(settings.data_dir)
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
            ready = asyncio.create_task(_until_ready(settings, connection, models, supervisor))
            failed = asyncio.create_task(supervisor.until_failed())
            await asyncio.wait({ready, stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                print(f"ready  grpc://{settings.host}:{settings.grpc_port}  ({time.monotonic() - started:.1f} s)")
                _next_steps(settings)
                sys.stdout.flush()
                watching = asyncio.create_task(_keep_watching(settings, connection, supervisor))
                await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
                watching.cancel()
            ready.cancel()
            if failed.done():
                failed.result()
            console.print("stopping ...")


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


def _refuse_taken_ports(settings: Settings) -> None:
    for port in (settings.grpc_port, settings.http_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                message = f"cannot listen on {settings.host}:{port} ({error.strerror}); pass other ports"
                raise UnavailableError(message, reason="PORT_TAKEN") from None


async def _first_key(keys: ApiKeys) -> None:
    """Accepts TINKER_API_KEY as a key, or makes one if there is none yet: printed first, so that none is unseen."""
    if given := os.environ.get("TINKER_API_KEY"):
        with contextlib.suppress(AlreadyExistsError):
            await keys.create(FIRST_TENANT, "from TINKER_API_KEY", given)
    elif not await keys.list():
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        print(f"API key of tenant {FIRST_TENANT}, not shown again:\n\n  export TINKER_API_KEY={key}\n", flush=True)
        await keys.create(FIRST_TENANT, "created by the first start", key)


async def _until_ready(
    settings: Settings, connection: RedisConnection, models: Sequence[ServedModel], supervisor: Supervisor
) -> None:
    """Waits until the gateway serves and every base model's trainer and sampler do."""
    directory = WorkerDirectory(connection)
    awaited = {f"{kind} {model.name}" for kind in KIND_NAMES.values() for model in models} | {"gateway"}
    while awaited:
        serving: set[str] = set()
        with contextlib.suppress(*TRANSIENT_ERRORS):  # the supervisor says what becomes of Redis
            serving = await supervisor.serving_workers(directory)
        if "gateway" in awaited and await is_serving(f"{settings.host}:{settings.grpc_port}"):
            supervisor.serves("gateway")
            serving.add("gateway")
        for name in sorted(awaited & serving):
            console.print(f"{name} is up")
        awaited -= serving
        await asyncio.sleep(0.1)


async def _keep_watching(settings: Settings, connection: RedisConnection, supervisor: Supervisor) -> None:
    """Records which children serve, for as long as it runs: one that was restarted has to serve again."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        with contextlib.suppress(*TRANSIENT_ERRORS):
            await supervisor.serving_workers(WorkerDirectory(connection))
        if await is_serving(f"{settings.host}:{settings.grpc_port}"):
            supervisor.serves("gateway")


def _next_steps(settings: Settings) -> None:
    address = f"{settings.host}:{settings.grpc_port}"
    print(
        f"""
Try it, in another terminal:
  export TINKER_GRPC_URL=grpc://{address} TINKER_API_KEY=...    # `tinker-platform keys create --tenant NAME` makes one
  tinker-platform model list
  python examples/sft.py
  grpcurl -plaintext -H "x-api-key: $TINKER_API_KEY" {address} tinker.v1.CapabilityService/GetServerCapabilities
Logs: {settings.data_dir}/logs. Ctrl-C stops the platform; the same command resumes it."""
    )
