"""The contract's runs, metrics, checkpoints and sessions → the client's types. Every time is in UTC."""

from __future__ import annotations

from datetime import UTC

from tinker_client import types
from tinker_proto.v1 import checkpoint_pb2, session_pb2, training_pb2

_CHECKPOINT_TYPES: dict[int, types.CheckpointType] = {
    checkpoint_pb2.CHECKPOINT_TYPE_TRAINING: "training",
    checkpoint_pb2.CHECKPOINT_TYPE_SAMPLER: "sampler",
    checkpoint_pb2.CHECKPOINT_TYPE_EXTERNAL: "external",
}


def training_run(run: training_pb2.TrainingRun) -> types.TrainingRun:
    """A run; times are in UTC."""
    return types.TrainingRun(
        training_run_id=run.training_run_id,
        base_model=run.base_model,
        is_lora=True,
        lora_rank=run.lora_config.rank,
        lora_config=_lora_config(run.lora_config),
        user_metadata=dict(run.user_metadata),
        create_time=run.create_time.ToDatetime(UTC),
        last_request_time=run.last_request_time.ToDatetime(UTC),
        last_checkpoint=run.last_checkpoint or None,
        last_sampler_checkpoint=run.last_sampler_checkpoint or None,
    )


def training_metrics(entry: training_pb2.TrainingMetrics) -> types.TrainingMetrics:
    """What one operation measured; the time is in UTC."""
    return types.TrainingMetrics(
        seq_id=entry.seq_id,
        time=entry.time.ToDatetime(UTC),
        method=entry.method,
        step=entry.step,
        metrics=dict(entry.metrics),
        tokens=entry.tokens,
        seconds=entry.seconds,
    )


def session(item: session_pb2.Session) -> types.Session:
    """A session; times are in UTC."""
    return types.Session(
        session_id=item.session_id,
        user_metadata=dict(item.user_metadata),
        create_time=item.create_time.ToDatetime(UTC),
        last_seen_time=item.last_seen_time.ToDatetime(UTC),
        end_time=item.end_time.ToDatetime(UTC) if item.HasField("end_time") else None,
        training_run_ids=list(item.training_run_ids),
        sampling_session_ids=list(item.sampling_session_ids),
    )


def info(run: training_pb2.TrainingRun) -> types.GetInfoResponse:
    """What a training client says about itself."""
    return types.GetInfoResponse(
        model_id=run.training_run_id,
        model_name=run.base_model,
        model_data=types.ModelData(model_name=run.base_model, tokenizer_id=run.base_model),
        is_lora=True,
        lora_rank=run.lora_config.rank,
        lora_config=_lora_config(run.lora_config),
    )


def checkpoint(item: checkpoint_pb2.Checkpoint) -> types.Checkpoint:
    """A checkpoint; times are in UTC."""
    return types.Checkpoint(
        checkpoint_id=item.checkpoint_id,
        checkpoint_type=_CHECKPOINT_TYPES[item.checkpoint_type],
        time=item.time.ToDatetime(UTC),
        tinker_path=item.tinker_path,
        size_bytes=item.size_bytes,
        public=item.public,
        training_run_id=item.training_run_id,
        base_model=item.base_model,
        lora_config=_lora_config(item.lora_config),
        expires_at=item.expires_at.ToDatetime(UTC) if item.HasField("expires_at") else None,
        user_metadata=dict(item.user_metadata),
    )


def _lora_config(config: training_pb2.LoraConfig) -> types.LoraConfig:
    seed = config.seed if config.HasField("seed") else None
    alpha = config.own_alpha if config.HasField("own_alpha") else config.alpha or types.LoraConfig.alpha
    use_rslora = config.use_rslora
    if config.target_modules:
        return types.LoraConfig(
            config.rank,
            seed,
            alpha=alpha,
            use_rslora=use_rslora,
            target_modules=list(config.target_modules),
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern=dict(config.alpha_pattern),
        )
    return types.LoraConfig(
        rank=config.rank,
        seed=seed,
        train_unembed=config.train_unembed,
        train_mlp=config.train_mlp,
        train_attn=config.train_attn,
        alpha=alpha,
        use_rslora=use_rslora,
    )
