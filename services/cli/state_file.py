"""The data directory of `up`: one `up` at a time, and where its Redis and its gRPC API are.

Other commands on this machine read it. The API's address is there only while that `up` runs.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from services.core.errors import FailedPreconditionError, UnavailableError
from services.core.storage.files import write_whole
from services.core.storage.interface import FULL

_LOCK = "lock"
_REDIS_URL = "redis-url"
_GRPC_URL = "grpc-url"
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def lock(data_dir: Path) -> IO[str]:
    """Takes a data directory for this process; keep the file open for as long as it runs.

    Raises:
        FailedPreconditionError: another `up` uses the directory, or it cannot be one.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = open(data_dir / _LOCK, "w")  # noqa: SIM115 - the lock lives as long as the file is open
    except OSError as error:
        if error.errno in FULL:
            raise
        message = f"{data_dir} cannot be used as a data directory ({error.strerror}); pass another --data-dir"
        raise FailedPreconditionError(message, reason="DATA_DIR_UNUSABLE") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        message = f"another `tinker-platform up` uses {data_dir}; stop it, or pass another --data-dir"
        raise FailedPreconditionError(message, reason="DATA_DIR_IN_USE") from None
    return file


def announce_redis_url(data_dir: Path, url: str) -> None:
    """Writes the Redis URL of this `up` for other commands."""
    write_whole(data_dir / _REDIS_URL, url.encode())


def running_redis_url(data_dir: Path) -> str:
    """The Redis of the `up` that runs in a data directory.

    Raises:
        UnavailableError: none does: its file is missing, or was left by one that has ended.
    """
    try:
        if _is_locked(data_dir):
            return (data_dir / _REDIS_URL).read_text()
    except OSError:
        pass
    message = f"no `tinker-platform up` runs in {data_dir}: start it, or pass its --data-dir, or --redis-url"
    raise UnavailableError(message, reason="NOT_RUNNING")


def _is_locked(data_dir: Path) -> bool:
    """Whether an `up` runs in a data directory: the kernel gives the lock of one that has ended back."""
    with open(data_dir / _LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def announced_grpc_url(data_dir: Path, host: str, port: int) -> Iterator[None]:
    """Writes the API's address of this `up` for users' commands, for as long as the block runs."""
    write_whole(data_dir / _GRPC_URL, f"grpc://{_EVERY_ADDRESS.get(host, host)}:{port}".encode())
    try:
        yield
    finally:
        (data_dir / _GRPC_URL).unlink(missing_ok=True)


def running_grpc_url(data_dir: Path) -> str | None:
    """The API of the `up` that runs in a data directory; None if none does."""
    try:
        return (data_dir / _GRPC_URL).read_text()
    except OSError:
        return None
