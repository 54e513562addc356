"""Settings of the services: command-line flags over `TINKER_*` variables over defaults.

An unknown `TINKER_*` variable is an error, so that a misspelt one is not ignored; those that belong to clients are left
alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.core.errors import InvalidArgumentError

ENV_PREFIX = "TINKER_"
CLIENT_VARIABLES = frozenset(
    {
        "TINKER_API_KEY",
        "TINKER_BASE_URL",
        "TINKER_CREDENTIAL_CMD",
        "TINKER_GRPC_URL",
        "TINKER_LOG",
        "TINKER_PROJECT_ID",
        "TINKER_TAGS",
        "TINKER_TELEMETRY",
    }
)

Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Everything that can be set; each field is also the variable TINKER_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    redis_url: str = Field(default="", description="redis:// or unix:// URL; empty: an embedded server (`up` only)")
    data_dir: Path = Field(
        default=Path("tinker-data"), description="checkpoints, snapshots, blobs and the embedded Redis"
    )
    storage_url: str = Field(
        default="",
        description="checkpoints and blobs: file:///directory or s3://bucket/prefix; empty: data_dir",
    )
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    host: str = Field(default="127.0.0.1", description="address that servers listen on")
    grpc_port: Port = 50051
    http_port: Port = 8000
    worker_port: Port = Field(default=0, description="port of a worker's health service; 0: any free one")
    metrics_port: Port = Field(default=0, description="port of a worker's /metrics; 0: none")
    reflection: Literal["open", "key", "off"] = Field(default="key", description="who may use gRPC reflection")
    max_message_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    max_upload_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        default=8 << 30, description="largest adapter_model.safetensors that is imported"
    )
    max_arriving_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        default=1 << 30, description="requests in a gateway's memory at once, of each port; more wait unread"
    )
    arrival_seconds: Annotated[float, Field(gt=0)] = Field(
        default=120.0, description="longest that a request may take to arrive once it is its turn"
    )
    max_waiting_per_run: Annotated[int, Field(ge=1)] = Field(default=10_000, description="operations of one run")
    max_waiting_operations_per_tenant: Annotated[int, Field(ge=1)] = Field(
        default=50_000, description="operations of all runs of one tenant"
    )
    max_waiting_operations: Annotated[int, Field(ge=1)] = Field(default=200_000, description="operations of all runs")
    max_waiting_samples_per_tenant: Annotated[int, Field(ge=1)] = Field(
        default=50_000, description="sampling requests of one tenant"
    )
    max_waiting_samples: Annotated[int, Field(ge=1)] = Field(default=200_000, description="all sampling requests")
    max_waiting_bytes_per_tenant: Annotated[int, Field(ge=1)] = Field(
        default=4 << 30, description="requests of one tenant that wait"
    )
    max_waiting_bytes: Annotated[int, Field(ge=1)] = Field(default=16 << 30, description="all requests that wait")
    max_sessions_per_tenant: Annotated[int, Field(ge=1)] = Field(
        default=1_000, description="sessions of one tenant that are alive"
    )
    max_sessions: Annotated[int, Field(ge=1)] = Field(default=10_000, description="all sessions that are alive")
    drain_seconds: Annotated[float, Field(ge=0)] = 20.0

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    lease_seconds: Annotated[float, Field(ge=1)] = 10.0
    max_runs: Annotated[int, Field(ge=1)] = 64
    idle_seconds: Annotated[float, Field(gt=0)] = Field(
        default=900.0, description="a run without operations for so long is parked on the disk"
    )
    snapshot_steps: Annotated[int, Field(ge=1)] = Field(default=20, description="a snapshot is due after so many steps")
    snapshot_seconds: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="a snapshot of a run that has changed is due after so many seconds"
    )
    snapshot_log_entries: Annotated[int, Field(ge=1)] = Field(
        default=256, description="a snapshot is due when a run's log has grown by so many operations"
    )
    snapshot_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.02, description="most of a trainer's time that goes into snapshots that are due"
    )
    max_lora_rank: Annotated[int, Field(ge=1)] = 128
    max_sequences: Annotated[int, Field(ge=1)] = 64
    max_tokens_per_step: Annotated[int, Field(ge=64)] = 2048
    max_cached_tokens: Annotated[int, Field(ge=64)] = 65_536
    max_adapters: Annotated[int, Field(ge=1)] = 64
    deterministic: bool = Field(
        default=False, description="samplers on a CPU: bitwise the same logprobs whatever else is in the batch; slower"
    )

    def with_redis(self) -> Settings:
        """These settings, if they say where Redis is: a service on its own has no embedded one.

        Raises:
            InvalidArgumentError: they do not.
        """
        if not self.redis_url:
            message = "which Redis? Pass --redis-url or set TINKER_REDIS_URL (`up` brings its own)"
            raise InvalidArgumentError(message, reason="NO_REDIS_URL")
        return self


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None means not given) and the environment.

    Raises:
        InvalidArgumentError: a value is not allowed, or a TINKER_* variable is unknown.
    """
    refuse_unknown_variables(os.environ)
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = [f"{ENV_PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
        raise InvalidArgumentError("; ".join(problems), reason="BAD_SETTING") from None


def refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Refuses TINKER_* variables that mean nothing.

    Raises:
        InvalidArgumentError: names them.
    """
    known = CLIENT_VARIABLES | {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.startswith(ENV_PREFIX) and name not in known)
    if unknown:
        message = f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        raise InvalidArgumentError(message, reason="UNKNOWN_SETTING")


def parse_base_model(option: str) -> tuple[str, str]:
    """NAME=DIR, DIR, or a Hugging Face name → the name that clients use, and where to load it from."""
    if Path(option).is_dir():
        return Path(option).resolve().name, option
    name, given, source = option.partition("=")
    return (name, source) if given else (option, option)
