"""Parts that operators' commands share: the options --redis-url and --data-dir, and a connection to Redis.

These commands need no gateway. Without --redis-url and TINKER_REDIS_URL they use the Redis of the `up` that runs in the
data directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from services.cli.state_file import lock, running_redis_url

if TYPE_CHECKING:
    from services.core.config import Settings
    from services.core.queue.connection import RedisConnection

RedisUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Redis URL of the platform. Default: TINKER_REDIS_URL, else that of a running `up`."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Data directory of the platform. Default: TINKER_DATA_DIR, else tinker-data."),
]

T = TypeVar("T")


def with_redis(call: Callable[[RedisConnection, Settings], Awaitable[T]], **flags: Any) -> T:
    """The result of a call that gets a connection and the settings.

    Args:
        call: what to do.
        flags: settings by field name; None means not given.

    Raises:
        PlatformError: of the call; or a setting is wrong, or no Redis is known.
    """
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.core.queue.connection import OPERATOR_ATTEMPTS, RedisConnection

    settings = load_settings(Settings, **flags)
    url = settings.redis_url or running_redis_url(settings.data_dir)

    async def run() -> T:
        connection = RedisConnection.open(url, OPERATOR_ATTEMPTS)
        try:
            return await call(connection, settings)
        finally:
            await connection.close()

    with redis_failures_named(url):
        return asyncio.run(run())


def with_redis_even_if_stopped(call: Callable[[RedisConnection, Settings], Awaitable[T]], **flags: Any) -> T:
    """As `with_redis`; starts the Redis of a stopped `up` for as long as the call runs.

    Raises:
        FailedPreconditionError: an `up` starts or ends at this moment.
    """
    from services.cli.embedded_redis import EmbeddedRedis
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.core.errors import UnavailableError
    from services.core.queue.connection import RedisConnection

    settings = load_settings(Settings, **flags)
    try:
        if not settings.redis_url:
            running_redis_url(settings.data_dir)
        return with_redis(call, **flags)
    except UnavailableError as error:
        if error.reason != "NOT_RUNNING":
            raise

    async def run() -> T:
        redis = EmbeddedRedis(settings.data_dir / "redis", settings.data_dir / "logs" / "redis.log")
        try:
            await redis.start()
            connection = RedisConnection.open(redis.url)
            try:
                return await call(connection, settings)
            finally:
                await connection.close()
        finally:
            await redis.stop()

    with lock(settings.data_dir):
        (settings.data_dir / "logs").mkdir(exist_ok=True)
        return asyncio.run(run())


@contextmanager
def redis_failures_named(url: str) -> Iterator[None]:
    """Turns the failure to reach Redis into one sentence.

    Raises:
        UnavailableError: Redis does not answer at `url`.
    """
    from services.cli.setting import without_credentials
    from services.core.errors import UnavailableError
    from services.core.queue.connection import TRANSIENT_ERRORS

    try:
        yield
    except* TRANSIENT_ERRORS as group:
        address = without_credentials(url)
        message = f"Redis does not answer at {address}: {_first(group)}; start it, or pass another --redis-url"
        raise UnavailableError(message, reason="QUEUE_UNAVAILABLE") from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
