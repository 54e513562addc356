"""`tinker-platform storage`: verifies stored checkpoints, deletes unreferenced data, and recovers a lost catalog."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli.output import print_table
from services.cli.redis_access import DataDir, RedisUrl, with_redis, with_redis_even_if_stopped
from tinker_proto.path import TinkerPath

if TYPE_CHECKING:
    from services.core.catalog.garbage import Waste
    from services.core.catalog.recovery import Found
    from services.core.config import Settings
    from services.core.queue.connection import RedisConnection
    from services.core.storage.interface import Storage

app = typer.Typer(
    help="Verify stored checkpoints, delete unreferenced data, recover a lost catalog.", no_args_is_help=True
)

StorageUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Storage of the platform: file:///directory or s3://bucket/prefix. Default: TINKER_STORAGE_URL, else the "
        "data directory.",
    ),
]

T = TypeVar("T")


@app.command()
def verify(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="tinker:// paths. Default: all checkpoints.")
    ] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    storage_url: StorageUrl = None,
) -> None:
    """Verify checkpoints: read every file and compare its SHA-256; exit code 1 if one is damaged.

    Example: tinker-platform storage verify tinker://$RUN/weights/step-100
    """
    from services.core.catalog.verification import verify_checkpoints
    from services.core.errors import InvalidArgumentError

    try:
        wanted = [TinkerPath.parse(path) for path in paths or ()]
    except ValueError as error:
        raise InvalidArgumentError.at("path", str(error)) from None
    checked = _with_storage(
        lambda connection, storage: verify_checkpoints(connection, storage, wanted), redis_url, data_dir, storage_url
    )
    print_table(
        ("checkpoint", "bytes", "state"),
        [(item.location, str(item.size_bytes), item.problem or "intact") for item in checked],
    )
    damaged = sum(1 for item in checked if item.problem)
    typer.echo(f"{len(checked)} checkpoints, {damaged} damaged", err=True)
    if damaged:
        raise typer.Exit(1)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be deleted, and delete nothing.")] = False,
    delete_all_checkpoints: Annotated[
        bool,
        typer.Option(
            "--delete-all-checkpoints", help="Also if the catalog has no checkpoint and the storage has some."
        ),
    ] = False,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    storage_url: StorageUrl = None,
) -> None:
    """Delete unreferenced data: partial writes, checkpoints and payloads without references, old uploads and exports.

    Data younger than a day is kept, so the platform can be running. Nothing is deleted if the storage belongs to
    another Redis.

    Example: tinker-platform storage gc --dry-run
    """

    async def collect(connection: RedisConnection, storage: Storage) -> list[Waste]:
        from services.core.catalog.garbage import GarbageCollector

        collector = GarbageCollector(connection, storage)
        await collector.check(delete_all_checkpoints=delete_all_checkpoints)
        found = await collector.find()
        return found if dry_run else [waste for waste in found if await collector.remove(waste)]

    removed = _with_storage(collect, redis_url, data_dir, storage_url)
    print_table(("kind", "bytes", "key"), [(waste.kind, str(waste.size_bytes), waste.key) for waste in removed])
    size_bytes = sum(waste.size_bytes for waste in removed)
    typer.echo(f"{'would delete' if dry_run else 'deleted'} {len(removed)}, {size_bytes} bytes", err=True)


@app.command()
def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would come back, and change nothing.")] = False,
    tenant: Annotated[
        str, typer.Option(metavar="NAME", help="Owner of checkpoints whose owner is not recorded in the storage.")
    ] = "",
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    storage_url: StorageUrl = None,
) -> None:
    """Recover checkpoints after Redis was lost: enter what the storage has into an empty catalog.

    Of each name the newest checkpoint comes back, private and without a time to live, with an entry for its run. API
    keys, sessions and the logs of runs were in Redis alone. Run it while the platform is stopped; again is no harm.

    Example: tinker-platform storage recover --dry-run
    """

    async def bring_back(connection: RedisConnection, settings: Settings) -> list[Found]:
        from services.core.catalog.recovery import CatalogRecovery
        from services.core.storage.open import open_storage

        recovery = CatalogRecovery(connection, open_storage(settings))
        found = await recovery.find(tenant)
        if not dry_run:
            await recovery.restore(found)
        return found

    flags = {"redis_url": redis_url, "data_dir": data_dir, "storage_url": storage_url}
    found = with_redis_even_if_stopped(bring_back, **flags)
    new = "would come back" if dry_run else "recovered"
    print_table(
        ("checkpoint", "tenant", "bytes", "state"),
        [
            (
                str(item.path),
                item.record.tenant if item.record else "",
                str(item.size_bytes),
                item.problem or ("in the catalog" if item.is_known else new),
            )
            for item in found
        ],
    )
    back = [item.record for item in found if item.record is not None and not item.is_known]
    lost = sum(1 for item in found if item.problem and not item.is_known)
    tenants = sorted({record.tenant for record in back})
    typer.echo(f"{len(back)} checkpoints {new}, {lost} cannot", err=True)
    if tenants and not dry_run:
        typer.echo(f"API keys do not come back: `tinker-platform keys create` for {', '.join(tenants)}", err=True)


def _with_storage(
    call: Callable[[RedisConnection, Storage], Awaitable[T]],
    redis_url: str | None,
    data_dir: Path | None,
    storage_url: str | None,
) -> T:
    from services.core.storage.open import open_storage

    return with_redis(
        lambda connection, settings: call(connection, open_storage(settings)),
        redis_url=redis_url,
        data_dir=data_dir,
        storage_url=storage_url,
    )
