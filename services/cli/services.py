"""Commands that run the platform or a service of it, and ask a server for its health."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from services.cli.redis_access import redis_failures_named
from services.cli.setting_options import flags_of

BaseModels = Annotated[
    list[str],
    typer.Option(
        "--base-model",
        metavar="NAME | DIR | NAME=DIR",
        help="A Hugging Face name or a local directory; NAME=DIR serves a directory under a name. Can be repeated; "
        "with the same directory, it adds a name.",
    ),
]
Names = Annotated[
    list[str],
    typer.Option(
        "--base-model",
        metavar="NAME | DIR | NAME=DIR",
        help="A Hugging Face name or a local directory; NAME=DIR serves a directory under a name. Repeated with the "
        "same directory, it adds a name.",
    ),
]


def up(context: typer.Context, base_model: BaseModels) -> None:
    """Run the whole platform on this machine: Redis, a gateway, and a trainer and a sampler for each base model.

    Example: tinker-platform up --base-model Qwen/Qwen3-0.6B
    """
    from services.cli.full_disk import full_disk
    from services.cli.up import run_up
    from services.core.config import UpSettings
    from services.core.environment import load_settings
    from services.core.storage.interface import FULL

    settings = load_settings(UpSettings, **flags_of(context))
    try:
        asyncio.run(run_up(settings, base_model))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(settings.data_dir) from None


def gateway(context: typer.Context) -> None:
    """Run one gateway: the gRPC API, and the HTTP API of the official SDK and of OpenAI.

    Example: tinker-platform gateway --redis-url redis://127.0.0.1:6379/0 --grpc-port 50051
    """
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.gateway.main import serve

    settings = load_settings(Settings, **flags_of(context)).with_redis()
    with redis_failures_named(settings.redis_url):
        asyncio.run(serve(settings))


def trainer(context: typer.Context, base_model: Names) -> None:
    """Run one trainer: LoRA training of one base model.

    Example: tinker-platform trainer --base-model Qwen/Qwen3-0.6B --redis-url redis://127.0.0.1:6379/0
    """
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.trainer.main import serve

    settings = load_settings(Settings, **flags_of(context)).with_redis()
    with redis_failures_named(settings.redis_url):
        asyncio.run(serve(settings, base_model))


def sampler(context: typer.Context, base_model: Names) -> None:
    """Run one sampler: generation from one base model and its checkpoints.

    Example: tinker-platform sampler --base-model Qwen/Qwen3-0.6B --redis-url redis://127.0.0.1:6379/0
    """
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.sampler.main import serve

    settings = load_settings(Settings, **flags_of(context)).with_redis()
    with redis_failures_named(settings.redis_url):
        asyncio.run(serve(settings, base_model))


def health(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="host:port of a gRPC server of the platform.")
    ] = "127.0.0.1:50051",
    service: Annotated[
        str, typer.Option(metavar="NAME", help="A gRPC service of that server. Empty: the whole server.")
    ] = "",
) -> None:
    """Check whether a gRPC server of the platform serves; exit code 0 means that it does.

    Example: tinker-platform health 127.0.0.1:50051
    """
    from services.cli.health import check

    asyncio.run(check(address, service))
    typer.echo(f"{address} is serving")
