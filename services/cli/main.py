"""The `tinker-platform` command: commands of users, and commands that run the platform.

Commands of users (run, checkpoint, session, model) talk to a platform anywhere, as the Python client does. Of the
others `up` starts everything on one machine and three start one service each. What a command needs is imported when it
runs, so that help is quick and a laptop needs no part of the platform.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from services.cli import checkpoint, keys, model, run, session, storage
from services.cli.access import FormatOption
from services.cli.exit_code import CommandError, ExitCode
from services.core.errors import InvalidArgumentError, PlatformError

USERS_GROUPS = {"run": run.app, "checkpoint": checkpoint.app, "session": session.app, "model": model.app}


class UsersFirst(TyperGroup):
    """Lists the commands of users before those that run the platform."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        return sorted(super().list_commands(ctx), key=lambda name: name not in USERS_GROUPS)


app = typer.Typer(
    name="tinker-platform",
    cls=UsersFirst,
    epilog="Exit codes: 0 done, 1 failed, 2 bad request, 3 not found, 4 no key or not allowed, 5 no platform answers, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_USERS, _OPERATORS = "Your runs and checkpoints", "The platform"
for name, group in USERS_GROUPS.items():
    app.add_typer(group, name=name, rich_help_panel=_USERS)
app.add_typer(keys.app, name="keys", rich_help_panel=_OPERATORS)
app.add_typer(storage.app, name="storage", rich_help_panel=_OPERATORS)

BaseModels = Annotated[
    list[str],
    typer.Option(
        "--base-model",
        metavar="NAME | DIR | NAME=DIR",
        help="A Hugging Face name or a local directory; NAME=DIR serves a directory under a name. May be repeated.",
    ),
]
BaseModel = Annotated[
    str, typer.Option("--base-model", metavar="NAME | DIR | NAME=DIR", help="A Hugging Face name or a local directory.")
]
RedisUrl = Annotated[str | None, typer.Option(help="redis:// or unix:// URL of Redis 7.0+ or Valkey 7.2+.")]
DataDir = Annotated[Path | None, typer.Option(help="Where checkpoints and large payloads are kept.")]
GrpcPort = Annotated[int | None, typer.Option(help="Port of the gRPC API.")]
HttpPort = Annotated[int | None, typer.Option(help="Port of /healthz and /metrics.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.callback()
def shared_options(context: typer.Context, output_format: FormatOption = None) -> None:
    """Self-hosted LoRA post-training: you write the loop, the platform runs the GPUs."""
    if output_format is not None and context.invoked_subcommand not in USERS_GROUPS:
        raise typer.BadParameter(f"only {', '.join(USERS_GROUPS)} have it", param_hint="'--format'")
    context.obj = output_format


@app.command(rich_help_panel=_OPERATORS)
def up(
    base_model: BaseModels,
    data_dir: DataDir = None,
    grpc_port: GrpcPort = None,
    http_port: HttpPort = None,
    host: Host = None,
    device: Device = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run the whole platform on this machine: Redis, gateway, and a trainer and a sampler for each base model."""
    from services.cli.up import run_up
    from services.core.config import UpSettings
    from services.core.environment import load_settings

    settings = load_settings(
        UpSettings,
        data_dir=data_dir,
        grpc_port=grpc_port,
        http_port=http_port,
        host=host,
        device=device,
        redis_url=redis_url,
    )
    asyncio.run(run_up(settings, base_model))


@app.command(rich_help_panel=_OPERATORS)
def gateway(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    grpc_port: GrpcPort = None,
    http_port: HttpPort = None,
    host: Host = None,
) -> None:
    """Run one gateway: the gRPC API that clients talk to."""
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.gateway.main import serve

    settings = load_settings(
        Settings, redis_url=redis_url, data_dir=data_dir, grpc_port=grpc_port, http_port=http_port, host=host
    )
    asyncio.run(serve(settings.with_redis()))


@app.command(rich_help_panel=_OPERATORS)
def trainer(base_model: BaseModel, redis_url: RedisUrl = None, data_dir: DataDir = None, device: Device = None) -> None:
    """Run one trainer: LoRA training on one base model."""
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.trainer.main import serve

    settings = load_settings(Settings, redis_url=redis_url, data_dir=data_dir, device=device)
    asyncio.run(serve(settings.with_redis(), base_model))


@app.command(rich_help_panel=_OPERATORS)
def sampler(base_model: BaseModel, redis_url: RedisUrl = None, data_dir: DataDir = None, device: Device = None) -> None:
    """Run one sampler: generation from one base model and its checkpoints."""
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.sampler.main import serve

    settings = load_settings(Settings, redis_url=redis_url, data_dir=data_dir, device=device)
    asyncio.run(serve(settings.with_redis(), base_model))


@app.command(rich_help_panel=_OPERATORS)
def health(
    address: Annotated[
        str, typer.Argument(help="host:port of any of the platform's gRPC servers.")
    ] = "127.0.0.1:50051",
    service: Annotated[str, typer.Option(help="A service of that server; empty: the server itself.")] = "",
) -> None:
    """Ask a server for its health; exit code 0 means it serves."""
    from services.cli.health import check

    asyncio.run(check(address, service))
    typer.echo(f"{address} is serving")


def main() -> None:
    """Entry point. A failure ends with one sentence on standard error and an ExitCode."""
    try:
        app()
    except CommandError as error:
        failure, code = error.message, error.exit_code
    except InvalidArgumentError as error:
        failure, code = error.message, ExitCode.BAD_REQUEST
    except PlatformError as error:
        failure, code = error.message, ExitCode.FAILED
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    print(f"Error: {failure}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
