"""`tinker-platform keys`: makes, lists and revokes API keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli.output import print_table
from services.cli.state_file import running_redis_url

if TYPE_CHECKING:
    from services.core.catalog.api_keys import ApiKeys

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

RedisUrl = Annotated[str | None, typer.Option(help="Redis of the platform; default: the one of a running `up`.")]
DataDir = Annotated[Path | None, typer.Option(help="The data directory of a running `up`.")]

_T = TypeVar("_T")


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Who the key belongs to; runs and checkpoints belong to tenants.")],
    label: Annotated[str, typer.Option(help="A note for yourself.")] = "",
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it; it is not shown again."""
    key, made = _with_keys(lambda keys: keys.create(tenant, label), redis_url, data_dir)
    typer.echo(key)
    typer.echo(f"key {made.key_id} of tenant {tenant}; use it as TINKER_API_KEY. It is not shown again.", err=True)


@app.command(name="list")
def list_keys(redis_url: RedisUrl = None, data_dir: DataDir = None) -> None:
    """Show all keys, without the keys themselves."""
    known = _with_keys(lambda keys: keys.list(), redis_url, data_dir)
    rows = [(key.key_id, key.tenant, f"{key.create_time:%Y-%m-%d %H:%M}", key.label) for key in known]
    print_table(("ID", "TENANT", "CREATED", "LABEL"), rows)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, from `keys list`.")],
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key unusable at once."""
    _with_keys(lambda keys: keys.revoke(key_id), redis_url, data_dir)
    typer.echo(f"revoked {key_id}")


def _with_keys(call: Callable[[ApiKeys], Awaitable[_T]], redis_url: str | None, data_dir: Path | None) -> _T:
    from services.core.catalog.api_keys import ApiKeys
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.core.queue.connection import RedisConnection

    settings = load_settings(Settings, redis_url=redis_url, data_dir=data_dir)
    url = settings.redis_url or running_redis_url(settings.data_dir)

    async def run() -> _T:
        connection = RedisConnection.open(url)
        try:
            return await call(ApiKeys(connection))
        finally:
            await connection.close()

    return asyncio.run(run())
