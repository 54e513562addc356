"""What the catalog holds: runs, their metrics, checkpoints and sessions. Frozen values; every time is in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tinker_client._inputs import LoraConfig
from tinker_proto.path import TinkerPath

CheckpointType = Literal["training", "sampler"]


@dataclass(frozen=True)
class Checkpoint:
    """A saved adapter: "training" with optimizer, "sampler" without."""

    checkpoint_id: str
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int
    public: bool
    training_run_id: str
    base_model: str
    lora_config: LoraConfig
    expires_at: datetime | None = None
    """When it deletes itself; None: never."""

    user_metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightsInfoResponse:
    """What a checkpoint's weights are for."""

    base_model: str
    is_lora: bool
    lora_rank: int
    lora_config: LoraConfig


@dataclass(frozen=True)
class CheckpointsListResponse:
    """A page of checkpoints, newest first; an empty token means the last page."""

    checkpoints: list[Checkpoint]
    next_page_token: str
    total_size: int


@dataclass(frozen=True)
class TrainingRun:
    """A LoRA adapter in training."""

    training_run_id: str
    base_model: str
    is_lora: bool
    lora_rank: int
    lora_config: LoraConfig
    user_metadata: dict[str, str]
    create_time: datetime
    last_request_time: datetime
    last_checkpoint: str | None = None
    """Path of its newest training checkpoint."""

    last_sampler_checkpoint: str | None = None
    """Path of its newest sampler checkpoint."""


@dataclass(frozen=True)
class TrainingRunsResponse:
    """A page of training runs, newest first; an empty token means the last page."""

    training_runs: list[TrainingRun]
    next_page_token: str
    total_size: int


@dataclass(frozen=True)
class TrainingMetrics:
    """What one operation of a run has measured."""

    seq_id: int
    """Its position in the run's order."""

    time: datetime
    method: str
    """"ForwardBackward", "Forward" or "OptimStep"."""

    step: int
    """Optimizer steps that the run had taken when it was done."""

    metrics: dict[str, float]
    tokens: int
    seconds: float
    """How long it was carried out; operations that were carried out together share a time."""


@dataclass(frozen=True)
class TrainingMetricsResponse:
    """A page of a run's metrics, oldest first; an empty token means the last page."""

    training_metrics: list[TrainingMetrics]
    next_page_token: str


@dataclass(frozen=True)
class Session:
    """One client process, and, if it was asked for alone, what was made in it."""

    session_id: str
    user_metadata: dict[str, str]
    create_time: datetime
    last_seen_time: datetime
    end_time: datetime | None
    """None while it has not been ended."""

    training_run_ids: list[str]
    sampling_session_ids: list[str]


@dataclass(frozen=True)
class ImportCheckpointResponse:
    """An imported adapter: its training checkpoint, and the run that it began."""

    path: str
    training_run: TrainingRun


@dataclass(frozen=True)
class ListSessionsResponse:
    """A page of sessions, newest first; an empty token means the last page."""

    sessions: list[Session]
    next_page_token: str
    total_size: int


@dataclass(frozen=True)
class ParsedCheckpointTinkerPath:
    """The parts of a checkpoint's path."""

    tinker_path: str
    training_run_id: str
    checkpoint_type: CheckpointType
    checkpoint_id: str

    @classmethod
    def from_tinker_path(cls, tinker_path: str) -> ParsedCheckpointTinkerPath:
        """Reads a path; the two-part form is that of save_state. ValueError with what is allowed otherwise."""
        path = TinkerPath.parse(tinker_path)
        kind = path.kind or "weights"
        checkpoint_type: CheckpointType = "training" if kind == "weights" else "sampler"
        return cls(tinker_path, path.training_run_id, checkpoint_type, f"{kind}/{path.name}")
