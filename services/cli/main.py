"""The `tinker-platform` command: one command starts everything on one machine, four start one service each."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli import health, keys
from services.cli.processes import BAD_REQUEST_EXIT_CODE
from services.core.config import load_settings
from services.core.errors import InvalidArgumentError, PlatformError

app = typer.Typer(
    name="tinker-platform",
    help="Self-hosted LoRA post-training: you write the loop, the platform runs the GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys.app, name="keys")

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


@app.command()
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

    settings = load_settings(
        data_dir=data_dir,
        grpc_port=grpc_port,
        http_port=http_port,
        host=host,
        device=device,
        redis_url=redis_url,
        reflection=os.environ.get("TINKER_REFLECTION", "open"),  # grpcurl works at once on one's own machine
    )
    asyncio.run(run_up(settings, base_model))


@app.command()
def gateway(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    grpc_port: GrpcPort = None,
    http_port: HttpPort = None,
    host: Host = None,
) -> None:
    """Run one gateway: the gRPC API that clients talk to."""
    from services.gateway.main import serve

    settings = load_settings(
        redis_url=redis_url, data_dir=data_dir, grpc_port=grpc_port, http_port=http_port, host=host
    )
    asyncio.run(serve(settings.with_redis()))


@app.command()
def trainer(base_model: BaseModel, redis_url: RedisUrl = None, data_dir: DataDir = None, device: Device = None) -> None:
    """Run one trainer: LoRA training on one base model."""
    from services.trainer.main import serve

    settings = load_settings(redis_url=redis_url, data_dir=data_dir, device=device)
    asyncio.run(serve(settings.with_redis(), base_model))


@app.command()
def sampler(base_model: BaseModel, redis_url: RedisUrl = None, data_dir: DataDir = None, device: Device = None) -> None:
    """Run one sampler: generation from one base model and its checkpoints."""
    from services.sampler.main import serve

    settings = load_settings(redis_url=redis_url, data_dir=data_dir, device=device)
    asyncio.run(serve(settings.with_redis(), base_model))


app.command(name="health")(health.health)


def main() -> None:
    """Entry point. A failure ends with one sentence: exit code 2 for a bad request, else 1; an interruption is 130."""
    try:
        app()
    except InvalidArgumentError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        sys.exit(BAD_REQUEST_EXIT_CODE)
    except PlatformError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
