"""Tiny base models of the supported families, with random weights large enough for errors to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3_5TextConfig,
    Qwen3Config,
)

VOCAB_SIZE = 89
HIDDEN_SIZE = 40
EOS = 2


def tiny_config(family: str, *, tied: bool = True) -> PreTrainedConfig:
    """Few layers, grouped heads, sizes that no two of which are equal."""
    kind, options = _FAMILIES[family]
    return kind(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=56,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,  # flash attention takes multiples of 8
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
        **options,
    )


_HYBRID = {
    "initializer_range": 0.05,  # at 0.2 plain PEFT's gradient is 1.2e-5 off its own in float64: no oracle for 1e-5
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
_FAMILIES: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"num_hidden_layers": 2, "initializer_range": 0.2}),
    "llama": (LlamaConfig, {"num_hidden_layers": 2, "initializer_range": 0.2}),
    "qwen3_5": (Qwen3_5TextConfig, _HYBRID),
}


def save_tiny_model(directory: Path, family: str, *, tied: bool = True) -> Path:
    """Writes a base model with its tokenizer, as a user has it on disk."""
    return save_model(directory, tiny_config(family, tied=tied))


def save_model(directory: Path, config: PreTrainedConfig) -> Path:
    """Writes a base model with random weights, and a tokenizer of one word per token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)  # type: ignore[no-untyped-call]
    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{index}": index for index in range(3, config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(directory)
    return directory
