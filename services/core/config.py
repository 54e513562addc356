"""Settings of the services, grouped by the service that reads them.

Each field has a description, a default and, where it has one, a unit: help texts, docs/settings.md and messages about
bad values are made from them. `services.core.environment` reads values from flags and variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.core.errors import InvalidArgumentError

ENV_PREFIX = "TINKER_"


@dataclass(frozen=True)
class Unit:
    """The unit of a setting's value."""

    name: str


@dataclass(frozen=True)
class Secret:
    """Marks a URL that may contain a password: lists show it without its credentials."""


@dataclass(frozen=True)
class Rule:
    """The rule of a text, as messages about bad values say it."""

    name: str


Port = Annotated[int, Field(ge=0, le=65535)]
Bytes = Annotated[int, Field(ge=1), Unit("bytes")]
Mebibytes = Annotated[int, Field(ge=1 << 20), Unit("bytes")]
ResultBytes = Annotated[int, Field(ge=1 << 20, le=1 << 30), Unit("bytes")]
Seconds = Annotated[float, Field(gt=0), Unit("seconds")]
Operations = Annotated[int, Field(ge=1), Unit("operations")]
Requests = Annotated[int, Field(ge=1), Unit("requests")]
Sessions = Annotated[int, Field(ge=1), Unit("sessions")]
Runs = Annotated[int, Field(ge=1), Unit("training runs")]
Steps = Annotated[int, Field(ge=1), Unit("optimizer steps")]
Tokens = Annotated[int, Field(ge=64), Unit("tokens")]
Rank = Annotated[int, Field(ge=1)]
Sequences = Annotated[int, Field(ge=1), Unit("sequences")]
Adapters = Annotated[int, Field(ge=1), Unit("adapters")]
Url = Annotated[str, Secret()]
Fingerprints = Annotated[
    str,
    Field(pattern=r"^(([0-9a-f]{16}-){2}[0-9a-f]{16}(,|$))*$"),
    Rule("fingerprints of base models, with commas between them"),
]


Origins = Annotated[
    str,
    Field(pattern=r"^(\*|(https?://[A-Za-z0-9.:\[\]-]+(,|$))*)$"),
    Rule("origins such as https://lab.example, with commas between them, or * for all"),
]


class CommonSettings(BaseSettings):
    """Settings that every service reads. The field `name` is also the variable TINKER_NAME."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    readers: ClassVar[str] = "every service"
    """Readers of the fields that this class adds."""

    redis_url: Url = Field(
        default="", description="redis:// or unix:// URL of Redis 7.0+ or Valkey 7.2+. Empty: `up` starts its own."
    )
    data_dir: Path = Field(
        default=Path("tinker-data"), description="Directory of checkpoints, snapshots, payloads and the embedded Redis."
    )
    storage_url: Url = Field(
        default="",
        description="Where checkpoints and payloads are stored: file:///directory or s3://bucket/prefix. "
        "Empty: the data directory.",
    )
    reserve_bytes: Annotated[int, Field(ge=0), Unit("bytes")] = Field(
        default=0,
        description="Disk space that saves leave free, for Redis; new work stops when half of it is left. "
        "0: 5 % of the disk, at most 1 GiB.",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="Format of the log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines that are written."
    )
    host: str = Field(default="127.0.0.1", description="Address that servers listen on.")
    reflection: Literal["open", "key", "off"] = Field(
        default="key", description="Who may use gRPC reflection: everyone, callers with an API key, or no one."
    )
    max_message_bytes: Mebibytes = Field(default=64 << 20, description="Largest gRPC message.")
    drain_seconds: Annotated[float, Field(ge=0), Unit("seconds")] = Field(
        default=20.0, description="Time that calls and operations in progress get to finish when a service stops."
    )

    def with_redis(self) -> Self:
        """These settings, if they name a Redis server: a service on its own has no embedded one.

        Raises:
            InvalidArgumentError: they do not.
        """
        if not self.redis_url:
            message = (
                "redis_url: must be set; pass --redis-url or set TINKER_REDIS_URL (only `up` starts its own Redis)"
            )
            raise InvalidArgumentError(message, reason="NO_REDIS_URL")
        return self


class GatewaySettings(CommonSettings):
    """Settings of the gateway."""

    readers: ClassVar[str] = "the gateway"

    grpc_port: Port = Field(default=50051, description="Port of the gRPC API.")
    http_port: Port = Field(
        default=8000, description="Port of the HTTP API of the official SDK and of OpenAI, /healthz and /metrics."
    )
    cors_origins: Origins = Field(
        default="", description="Origins of web pages that may call the HTTP port from a browser. Empty: none."
    )
    max_upload_bytes: Mebibytes = Field(
        default=8 << 30, description="Largest adapter_model.safetensors that can be imported."
    )
    max_result_bytes: ResultBytes = Field(
        default=256 << 20,
        description="Largest result that a sampling request may have, computed before it is queued.",
    )
    max_arriving_bytes: Mebibytes = Field(
        default=1 << 30,
        description="Memory budget for incoming requests, per port; excess requests wait before being read.",
    )
    arrival_seconds: Seconds = Field(
        default=120.0,
        description="Time that the head of an HTTP request may take to arrive, and then a request that is being read.",
    )
    max_waiting_per_run: Operations = Field(
        default=10_000, description="Most queued or running operations of one training run."
    )
    max_waiting_operations_per_tenant: Operations = Field(
        default=50_000, description="Most queued or running operations of all training runs of one tenant."
    )
    max_waiting_operations: Operations = Field(
        default=200_000, description="Most queued or running operations of all training runs."
    )
    max_waiting_samples_per_tenant: Requests = Field(
        default=50_000, description="Most queued or running sampling requests of one tenant."
    )
    max_waiting_samples: Requests = Field(default=200_000, description="Most queued or running sampling requests.")
    max_waiting_bytes_per_tenant: Bytes = Field(
        default=4 << 30, description="Most bytes of one tenant's queued or running requests."
    )
    max_waiting_bytes: Bytes = Field(default=16 << 30, description="Most bytes of all queued or running requests.")
    max_sessions_per_tenant: Sessions = Field(default=1_000, description="Most live sessions of one tenant.")
    max_sessions: Sessions = Field(default=10_000, description="Most live sessions.")
    max_sampling_sessions_per_tenant: Sessions = Field(
        default=100_000, description="Most sampling sessions of one tenant that were used within 30 days."
    )
    max_training_runs_per_tenant: Runs = Field(default=10_000, description="Most training runs of one tenant.")
    max_uploaded_bytes_per_tenant: Mebibytes = Field(
        default=64 << 30, description="Most bytes of one tenant's uploads, which are kept for a day."
    )
    max_merges_per_tenant: Requests = Field(
        default=100, description="Most merges of one tenant within a day; their files are kept for a day."
    )


class WorkerSettings(CommonSettings):
    """Settings that trainers and samplers read."""

    readers: ClassVar[str] = "trainers and samplers"

    worker_port: Port = Field(default=0, description="Port of the worker's gRPC health service. 0: any free port.")
    metrics_port: Port = Field(
        default=0,
        description="Port of the worker's /metrics. 0: none. `up` gives its workers this port and the following ones.",
    )
    device: str = Field(default="auto", description="Device that computes: auto, cpu, cuda or cuda:N.")
    lease_seconds: Annotated[float, Field(ge=1), Unit("seconds")] = Field(
        default=10.0, description="Time after which the work of a silent worker goes to another one."
    )
    accepted_fingerprints: Fingerprints = Field(
        default="",
        description="Fingerprints of other versions of the base model, whose checkpoints and training runs are used "
        "with this one all the same. Errors name them.",
    )


class TrainerSettings(WorkerSettings):
    """Settings of the trainer."""

    readers: ClassVar[str] = "trainers"

    max_runs: Runs = Field(default=64, description="Most training runs that a trainer holds in memory.")
    idle_seconds: Seconds = Field(
        default=900.0, description="Idle training runs are snapshotted to the storage after this time."
    )
    snapshot_steps: Steps = Field(default=20, description="A snapshot of a run is due after this many optimizer steps.")
    snapshot_seconds: Seconds = Field(
        default=60.0, description="A snapshot of a run that has changed is due after this time."
    )
    snapshot_log_entries: Operations = Field(
        default=256, description="A snapshot of a run is due when its log has grown by this many operations."
    )
    snapshot_share: Annotated[float, Field(gt=0, le=1), Unit("fraction")] = Field(
        default=0.02, description="Largest fraction of a trainer's time spent on snapshots that are due."
    )
    max_stored_bytes_per_tenant: Mebibytes = Field(
        default=1 << 40,
        description="Most bytes of one tenant's checkpoints, deleted ones that are still used included.",
    )
    max_checkpoints_per_tenant: Annotated[int, Field(ge=1), Unit("checkpoints")] = Field(
        default=100_000, description="Most checkpoints of one tenant."
    )
    max_lora_rank: Rank = Field(default=128, description="Largest LoRA rank of a training run.")


class SamplerSettings(WorkerSettings):
    """Settings of the sampler."""

    readers: ClassVar[str] = "samplers"

    max_sequences: Sequences = Field(default=64, description="Most sequences generated at once.")
    max_tokens_per_step: Tokens = Field(default=2048, description="Most tokens in one forward pass.")
    max_cached_tokens: Tokens = Field(
        default=65_536, description="Tokens in the KV cache: of sequences in progress and of reusable prefixes."
    )
    max_adapters: Adapters = Field(default=64, description="Most adapters in memory.")
    deterministic: bool = Field(
        default=False,
        description="On a CPU, compute bitwise identical logprobs whether a request runs alone or batched; slower.",
    )
    share_prefixes: bool = Field(
        default=False,
        description="Share cached prompts between tenants; only for installations of a single team: it reveals what "
        "others have sent.",
    )


class Settings(GatewaySettings, TrainerSettings, SamplerSettings):
    """Settings of all services: one environment serves them all."""


class UpSettings(Settings):
    """Settings of all services, with the defaults of `tinker-platform up`: gRPC tools work without a key."""

    reflection: Literal["open", "key", "off"] = Field(
        default="open", description=CommonSettings.model_fields["reflection"].description
    )


SERVICES: dict[str, type[CommonSettings]] = {
    "gateway": GatewaySettings,
    "trainer": TrainerSettings,
    "sampler": SamplerSettings,
}

GROUPS: tuple[type[CommonSettings], ...] = (
    CommonSettings,
    GatewaySettings,
    WorkerSettings,
    TrainerSettings,
    SamplerSettings,
)
"""Classes that define fields, in the order in which people read them."""


def fingerprints_of(settings: WorkerSettings) -> frozenset[str]:
    """The fingerprints of other base models that count as the one served."""
    return frozenset(filter(None, settings.accepted_fingerprints.split(",")))
