"""`tinker-platform keys`: creates, lists and revokes API keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli.output import print_table
from services.cli.redis_access import DataDir, RedisUrl, with_redis

if TYPE_CHECKING:
    from services.core.catalog.api_keys import ApiKeys

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

T = TypeVar("T")


@app.command()
def create(
    tenant: Annotated[
        str, typer.Option(metavar="NAME", help="Tenant that the key belongs to; a tenant owns runs and checkpoints.")
    ],
    label: Annotated[str, typer.Option(metavar="TEXT", help="Note that `keys list` shows.")] = "",
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Create an API key for a tenant and print it; it is not shown again.

    Example: tinker-platform keys create --tenant alice --label laptop
    """
    key, made = _with_keys(lambda keys: keys.create(tenant, label), redis_url, data_dir)
    typer.echo(key)
    typer.echo(f"created key {made.key_id} of tenant {tenant}: set TINKER_API_KEY to it", err=True)


@app.command(name="list")
def list_keys(redis_url: RedisUrl = None, data_dir: DataDir = None) -> None:
    """List all API keys: ids, tenants and labels, but not the keys themselves.

    Example: tinker-platform keys list
    """
    known = _with_keys(lambda keys: keys.list(), redis_url, data_dir)
    rows = [(key.key_id, key.tenant, f"{key.create_time:%Y-%m-%d %H:%M}", key.label) for key in known]
    print_table(("ID", "TENANT", "CREATED", "LABEL"), rows)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `keys list` shows it.")],
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke an API key: calls with it are refused and end, and so does work of a tenant without another key.

    Example: tinker-platform keys revoke $KEY_ID
    """
    _with_keys(lambda keys: keys.revoke(key_id), redis_url, data_dir)
    typer.echo(f"revoked {key_id}")


def _with_keys(call: Callable[[ApiKeys], Awaitable[T]], redis_url: str | None, data_dir: Path | None) -> T:
    from services.core.catalog.api_keys import ApiKeys

    return with_redis(lambda connection, _: call(ApiKeys(connection)), redis_url=redis_url, data_dir=data_dir)
