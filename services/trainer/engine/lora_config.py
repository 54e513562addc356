"""LoraConfig of the contract ↔ AdapterConfig. The gateway has filled in every default."""

from __future__ import annotations

from services.model.adapter_config import AdapterConfig
from tinker_proto.v1 import training_pb2

FLAGS = ("train_attn", "train_mlp", "train_unembed")


def read_lora_config(given: training_pb2.LoraConfig) -> AdapterConfig:
    """The adapter that a run is to have."""
    present = {descriptor.name for descriptor, _ in given.ListFields()}
    flags = {name: getattr(given, name) for name in FLAGS if name in present}
    return AdapterConfig(
        rank=given.rank,
        alpha=given.alpha if given.HasField("alpha") else AdapterConfig.alpha,
        **flags,
        seed=given.seed if given.HasField("seed") else None,
        use_rslora=given.use_rslora,
        target_modules=tuple(given.target_modules),
    )


def write_lora_config(config: AdapterConfig) -> training_pb2.LoraConfig:
    """What a client is told about an adapter; explicit targets take the place of the three flags."""
    written = training_pb2.LoraConfig(
        rank=config.rank,
        seed=config.seed,
        alpha=config.alpha,
        use_rslora=config.use_rslora,
        target_modules=config.target_modules,
    )
    if not config.target_modules:
        for name in FLAGS:
            setattr(written, name, getattr(config, name))
    return written
