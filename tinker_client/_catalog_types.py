"""Entries of the catalog: runs, their metrics, checkpoints and sessions. Frozen values; every time is in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tinker_client._inputs import LoraConfig
from tinker_client._readable import Readable
from tinker_proto.path import TinkerPath

CheckpointType = Literal["training", "sampler", "external"]


_TYPES: Mapping[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


@dataclass(frozen=True)
class Checkpoint:
    """A saved adapter.

    Attributes:
        checkpoint_id: `weights/<name>` or `sampler_weights/<name>`.
        checkpoint_type: "training" (adapter and optimizer, can be loaded and sampled) or "sampler" (adapter alone).
        time: when it was written.
        tinker_path: `tinker://<training_run_id>/<checkpoint_id>`.
        size_bytes: bytes in storage.
        public: whether every user of the platform may read it.
        training_run_id: the run that wrote it.
        base_model: name of the base model.
        lora_config: shape of the adapter.
        expires_at: when the platform deletes it; None: never.
        user_metadata: labels given when it was saved.
    """

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
    user_metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightsInfoResponse:
    """Base model and adapter shape of a checkpoint.

    Attributes:
        base_model: name of the base model.
        is_lora: True, because every checkpoint is a LoRA adapter.
        lora_rank: rank of the adapter.
        lora_config: shape of the adapter.
    """

    base_model: str
    is_lora: bool
    lora_rank: int
    lora_config: LoraConfig


@dataclass(frozen=True, repr=False)
class CheckpointsListResponse(Readable):
    """A page of checkpoints.

    Attributes:
        checkpoints: newest first.
        next_page_token: `page_token` of the next page; empty on the last one.
        total_size: number of checkpoints on all pages.
    """

    checkpoints: list[Checkpoint]
    next_page_token: str
    total_size: int


@dataclass(frozen=True)
class TrainingRun:
    """A LoRA adapter in training.

    Attributes:
        training_run_id: `<session_id>:train:<n>`.
        base_model: name of the frozen base model.
        is_lora: True, because every run trains a LoRA adapter.
        lora_rank: rank of the adapter.
        lora_config: shape of the adapter, with the seed that was drawn if none was given.
        user_metadata: labels given when it was created.
        create_time: when it was created.
        last_request_time: when its latest operation was accepted.
        last_checkpoint: path of its newest training checkpoint; None if there is none.
        last_sampler_checkpoint: path of its newest sampler checkpoint; None if there is none.
    """

    training_run_id: str
    base_model: str
    is_lora: bool
    lora_rank: int
    lora_config: LoraConfig
    user_metadata: dict[str, str]
    create_time: datetime
    last_request_time: datetime
    last_checkpoint: str | None = None
    last_sampler_checkpoint: str | None = None


@dataclass(frozen=True, repr=False)
class TrainingRunsResponse(Readable):
    """A page of training runs.

    Attributes:
        training_runs: newest first.
        next_page_token: `page_token` of the next page; empty on the last one.
        total_size: number of runs on all pages.
    """

    training_runs: list[TrainingRun]
    next_page_token: str
    total_size: int


@dataclass(frozen=True)
class TrainingMetrics:
    """Measurements of one operation of a run.

    Attributes:
        seq_id: the operation's position in the run's order, from 1.
        time: when it was done.
        method: "ForwardBackward", "Forward" or "OptimStep".
        step: optimizer steps that the run had taken by then.
        metrics: what the operation returned, named `name:reduction`; for an OptimStep also "learning_rate:mean".
        tokens: number of tokens it computed.
        seconds: its duration; operations that were carried out together share a time.
    """

    seq_id: int
    time: datetime
    method: str
    step: int
    metrics: dict[str, float]
    tokens: int
    seconds: float


@dataclass(frozen=True, repr=False)
class TrainingMetricsResponse(Readable):
    """A page of a run's metrics.

    Attributes:
        training_metrics: oldest first.
        next_page_token: `page_token` of the next page; empty on the last one.
    """

    training_metrics: list[TrainingMetrics]
    next_page_token: str


@dataclass(frozen=True)
class Session:
    """One client process as the platform sees it.

    Attributes:
        session_id: name of the session, and prefix of the names of everything made in it.
        user_metadata: labels given when it was opened.
        create_time: when it was opened.
        last_seen_time: when the client last contacted the platform.
        end_time: when it was ended; None while it is open.
        training_run_ids: ids of its training runs, oldest first; empty in lists of sessions.
        sampling_session_ids: ids of its sampling sessions, oldest first; empty in lists of sessions.
    """

    session_id: str
    user_metadata: dict[str, str]
    create_time: datetime
    last_seen_time: datetime
    end_time: datetime | None
    training_run_ids: list[str]
    sampling_session_ids: list[str]


@dataclass(frozen=True)
class ImportCheckpointResponse:
    """An imported adapter.

    Attributes:
        path: path of its training checkpoint.
        training_run: the run that the import created.
    """

    path: str
    training_run: TrainingRun


@dataclass(frozen=True, repr=False)
class ListSessionsResponse(Readable):
    """A page of sessions.

    Attributes:
        sessions: newest first.
        next_page_token: `page_token` of the next page; empty on the last one.
        total_size: number of sessions on all pages.
    """

    sessions: list[Session]
    next_page_token: str
    total_size: int


@dataclass(frozen=True)
class ParsedCheckpointTinkerPath:
    """Parts of a checkpoint's path.

    Attributes:
        tinker_path: the path as it was given.
        training_run_id: the run that wrote the checkpoint.
        checkpoint_type: "training" for `weights`, "sampler" for `sampler_weights`, "external" for `external_weights`.
        checkpoint_id: `weights/<name>` or `sampler_weights/<name>`.
    """

    tinker_path: str
    training_run_id: str
    checkpoint_type: CheckpointType
    checkpoint_id: str

    @classmethod
    def from_tinker_path(cls, tinker_path: str) -> ParsedCheckpointTinkerPath:
        """Reads a path.

        Args:
            tinker_path: `tinker://<training_run_id>/weights/<name>`, `.../sampler_weights/<name>`, or without a kind
                `tinker://<training_run_id>/<name>`, which is read as `weights`.

        Raises:
            ValueError: it has none of these forms.
        """
        path = TinkerPath.parse(tinker_path)
        kind = path.kind or "weights"
        checkpoint_type = _TYPES[kind]
        return cls(tinker_path, path.training_run_id, checkpoint_type, f"{kind}/{path.name}")
