"""Entry point of `tinker-platform`: says which extra to install when a part of the platform is not installed."""

from __future__ import annotations

import sys

from services.core.installation import install_command

EXTRAS = {
    "plotille": "cli",
    "rich": "cli",
    "typer": "cli",
    "grpc_health": "gateway",
    "grpc_reflection": "gateway",
    "prometheus_client": "gateway",
    "pydantic": "gateway",
    "pydantic_settings": "gateway",
    "redis": "gateway",
    "starlette": "gateway",
    "structlog": "gateway",
    "uvicorn": "gateway",
    "obstore": "s3",
    "peft": "worker",
    "safetensors": "worker",
    "torch": "worker",
    "matplotlib": "plot",
}


def main() -> None:
    """Runs the command line."""
    try:
        from services.cli.main import main as run

        run()
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        sys.exit(f"Error: this needs {error.name}, which is not installed: {install_command(extra)}")
