"""What the trainer's benchmarks compute on: a random Qwen3, runs on it, and data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import Qwen3Config

from services.core.losses import LOSSES
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel, load_base_model
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import AdamParams, Example, PassJob
from testing.tiny_models import save_model

ADAM = AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0)
CONFIG = AdapterConfig(8, seed=0)
LOSS = LOSSES["cross_entropy"]
VOCAB = 8192


def qwen(directory: Path, *, hidden: int = 512, layers: int = 8, vocab: int = VOCAB) -> Path:
    heads = hidden // 64
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        intermediate_size=3 * hidden,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return save_model(directory, config)


def load(source: Path) -> BaseModel:
    return load_base_model(str(source), name="bench", device="cpu")


def example(length: int, seed: int, prefix: Sequence[int] = ()) -> Example:
    draw = random.Random(seed)
    tokens = [*prefix, *(draw.randrange(3, VOCAB) for _ in range(length - len(prefix)))]
    targets = np.array([*tokens[1:], 4])[:, None]
    return Example(np.array(tokens), targets, {"weights": np.ones((length, 1), np.float32)}, (length,))


def engine_with(source: Path, runs: int) -> LocalTrainerEngine:
    engine = LocalTrainerEngine(load(source))
    for index in range(runs):
        engine.create_run(f"r{index}", AdapterConfig(8, seed=index))
    return engine


def jobs(examples: Sequence[Sequence[Example]]) -> list[PassJob]:
    return [PassJob(f"r{index}", list(own), LOSS, {}, True) for index, own in enumerate(examples)]
