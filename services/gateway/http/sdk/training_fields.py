"""JSON requests of the SDK about training runs, as messages of tinker.v1.

`refusal` says why a well-formed request cannot be carried out here; it is then queued in its run's order and fails.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from services.core.errors import InvalidArgumentError, quoted
from services.core.process.metrics import IGNORED_FIELDS
from services.gateway.http.body import Fields
from services.gateway.http.json_parsing import NULL_NUMBER
from services.gateway.http.sdk.fields import Int32, Int64, Metadata, SdkFields, SeqId
from tinker_proto.v1 import training_pb2


class OtherOptimizer(Fields):
    """An optimizer by its type, with parameters of its own."""

    model_config = ConfigDict(extra="allow")

    type: str = "adamw"


class LoraFields(Fields):
    """The shape of an adapter."""

    rank: Int32
    seed: Int64 | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModel(SdkFields):
    """POST create_model."""

    session_id: str
    model_seq_id: SeqId
    base_model: str
    lora_config: LoraFields
    optimizer_config: OtherOptimizer = OtherOptimizer()
    user_metadata: Metadata = None

    def message(self) -> training_pb2.CreateTrainingRunRequest:
        """The message; raises InvalidArgumentError for another optimizer."""
        _check_optimizer("optimizer_config", self.optimizer_config)
        return training_pb2.CreateTrainingRunRequest(
            session_id=self.session_id,
            training_run_seq_id=self.model_seq_id,
            base_model=self.base_model,
            lora_config=training_pb2.LoraConfig(**self.lora_config.model_dump(exclude_none=True)),
            user_metadata=self.user_metadata or {},
        )


class GetInfo(SdkFields):
    """POST get_info."""

    model_id: str


class AdamFields(Fields):
    """AdamW's parameters; values are checked where those of every client are."""

    learning_rate: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    grad_clip_norm: float | None = None

    def refusal(self) -> InvalidArgumentError | None:
        """Why a parameter that is null cannot be taken."""
        for name in type(self).model_fields:
            if name in self.model_fields_set and getattr(self, name) is None:
                return InvalidArgumentError.must_be(f"adam_params.{name}", "finite", NULL_NUMBER)
        return None


class OptimStep(SdkFields):
    """POST optim_step."""

    model_id: str
    seq_id: SeqId
    adam_params: AdamFields | None = None
    optimizer_params: OtherOptimizer | None = None

    def message(self) -> training_pb2.OptimStepRequest:
        """The message."""
        message = training_pb2.OptimStepRequest(training_run_id=self.model_id, seq_id=self.seq_id)
        if self.adam_params is not None:
            params = self.adam_params.model_dump(exclude_none=True)
            message.adam_params.CopyFrom(training_pb2.AdamParams(**params))
        return message

    def refusal(self) -> InvalidArgumentError | None:
        """Why a step of another optimizer, or with a NaN, cannot be taken."""
        if self.optimizer_params is None:
            return None if self.adam_params is None else self.adam_params.refusal()
        rule = "absent, with adam_params in its place"
        return InvalidArgumentError.must_be("optimizer_params", rule, f"type {quoted(self.optimizer_params.type)}")


class SaveWeights(SdkFields):
    """POST save_weights."""

    model_id: str
    seq_id: SeqId
    path: str
    ttl_seconds: Int64 | None = None
    overwrite: bool = False
    user_metadata: Metadata = None

    def message(self) -> training_pb2.SaveStateRequest:
        """The message."""
        return training_pb2.SaveStateRequest(
            training_run_id=self.model_id,
            seq_id=self.seq_id,
            name=self.path,
            overwrite=self.overwrite,
            ttl_seconds=self.ttl_seconds,
            user_metadata=self.user_metadata or {},
        )


class SaveWeightsForSampler(SdkFields):
    """POST save_weights_for_sampler: under a name, or for a sampling session."""

    model_id: str
    seq_id: SeqId
    path: str | None = None
    sampling_session_seq_id: SeqId | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: Int64 | None = None
    user_metadata: Metadata = None

    def message(self) -> training_pb2.SaveWeightsForSamplerRequest:
        """The message; weights with neither a name nor a time to live belong to their sampling session."""
        return training_pb2.SaveWeightsForSamplerRequest(
            training_run_id=self.model_id,
            seq_id=self.seq_id,
            name=self.path or "",
            ttl_seconds=self.ttl_seconds,
            user_metadata=self.user_metadata or {},
            for_sampling_session=self.path is None and self.ttl_seconds is None,
        )

    def refusal(self) -> InvalidArgumentError | None:
        """Why it cannot be both or neither."""
        if (self.path is None) == (self.sampling_session_seq_id is None):
            got = "neither" if self.path is None else "both"
            return InvalidArgumentError.must_be("path", "set exactly if sampling_session_seq_id is not", got)
        if self.path == "":
            return InvalidArgumentError.must_be("path", "1 to 200 characters of [A-Za-z0-9._-]", quoted(""))
        if self.path is not None and self.kind == "inflight":
            return InvalidArgumentError.must_be("kind", "'snapshot' if path is set", quoted(self.kind))
        return None


class SaveExternal(SdkFields):
    """POST save_weights_external."""

    model_id: str
    seq_id: SeqId
    path: str = Field(min_length=1)
    ttl_seconds: Int64 | None = None
    age_encryption_recipients: list[str] | None = None

    def message(self) -> training_pb2.SaveWeightsForSamplerRequest:
        """The message."""
        return training_pb2.SaveWeightsForSamplerRequest(
            training_run_id=self.model_id,
            seq_id=self.seq_id,
            name=self.path,
            ttl_seconds=self.ttl_seconds,
            external=True,
            age_encryption_recipients=self.age_encryption_recipients or (),
        )


class LoadWeights(SdkFields):
    """POST load_weights: into a run (model_id, seq_id), or into a new one (session_id, model_seq_id)."""

    model_id: str | None = None
    seq_id: SeqId | None = None
    session_id: str | None = None
    model_seq_id: SeqId | None = None
    path: str
    optimizer: bool = False
    weights_access_token: str | None = None
    base_model: str | None = None
    optimizer_config: OtherOptimizer | None = None
    user_metadata: Metadata = None

    def message(self) -> training_pb2.LoadStateRequest:
        """The message for a run that exists; raises InvalidArgumentError without its id and a seq_id."""
        if self.model_id is None or self.seq_id is None:
            raise InvalidArgumentError.at("seq_id", "required together with model_id")
        return training_pb2.LoadStateRequest(
            training_run_id=self.model_id, seq_id=self.seq_id, path=self.path, restore_optimizer=self.optimizer
        )

    def creation(self) -> training_pb2.CreateTrainingRunFromCheckpointRequest:
        """The message for a new run; raises InvalidArgumentError for what cannot be carried out."""
        if self.session_id is None or self.model_seq_id is None or self.seq_id is not None:
            message = "required with seq_id, unless session_id and model_seq_id are set in their place"
            raise InvalidArgumentError.at("model_id", message)
        if self.optimizer_config is not None:
            _check_optimizer("optimizer_config", self.optimizer_config)
        if (refusal := self._refused_token()) is not None:
            raise refusal
        return training_pb2.CreateTrainingRunFromCheckpointRequest(
            session_id=self.session_id,
            training_run_seq_id=self.model_seq_id,
            path=self.path,
            restore_optimizer=self.optimizer,
            user_metadata=self.user_metadata or {},
        )

    def refusal(self) -> InvalidArgumentError | None:
        """Why it cannot be loaded into a run that exists."""
        extra: dict[str, Any] = {
            "session_id": self.session_id,
            "model_seq_id": self.model_seq_id,
            "base_model": self.base_model,
            "optimizer_config": self.optimizer_config,
            "user_metadata": self.user_metadata,
        }
        for name, value in extra.items():
            if value is not None:
                return InvalidArgumentError.must_be(name, "absent if model_id is set")
        return self._refused_token()

    def _refused_token(self) -> InvalidArgumentError | None:
        if self.weights_access_token is None:
            return None
        message = "not supported; a checkpoint of another tenant can be loaded once its owner has published it"
        return InvalidArgumentError.at("weights_access_token", message)


def _check_optimizer(field: str, optimizer: OtherOptimizer) -> None:
    others = list((optimizer.model_extra or {}).values())
    empty = sum(1 for value in others if not value)
    if optimizer.type != "adamw" or empty < len(others):
        got = f"type {quoted(optimizer.type)} and {len(others)} other fields"
        raise InvalidArgumentError.must_be(field, "type 'adamw' without other fields", got)
    IGNORED_FIELDS.labels("sdk").inc(empty)
