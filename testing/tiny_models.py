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
    Ministral3Config,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
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
_FOUR_LAYERS = {"num_hidden_layers": 4, "initializer_range": 0.2}
_MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.1,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_FAMILIES: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"num_hidden_layers": 2, "initializer_range": 0.2}),
    "llama": (LlamaConfig, {"num_hidden_layers": 2, "initializer_range": 0.2}),
    "qwen3_5": (Qwen3_5TextConfig, _HYBRID),
    "mistral": (MistralConfig, {**_FOUR_LAYERS, "sliding_window": None}),
    "ministral3": (Ministral3Config, {**_FOUR_LAYERS, "sliding_window": None, "rope_parameters": _MINISTRAL_ROPE}),
    "olmo2": (Olmo2Config, _FOUR_LAYERS),
    "qwen2": (Qwen2Config, _FOUR_LAYERS),
    "seed_oss": (SeedOssConfig, _FOUR_LAYERS),
    "smollm3": (SmolLM3Config, {**_FOUR_LAYERS, "no_rope_layer_interval": 2}),
}


def save_tiny_model(directory: Path, family: str, *, tied: bool = True) -> Path:
    """Writes a base model with its tokenizer, as a user has it on disk."""
    return save_model(directory, tiny_config(family, tied=tied))


def save_model(directory: Path, config: PreTrainedConfig, *, spread: float = 0.0) -> Path:
    """Writes a base model with random weights, and a tokenizer of one word per token.

    `spread` moves biases and norms away from the zeros and ones that they begin with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            if spread and parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=spread)
        model.save_pretrained(directory)
    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{index}": index for index in range(3, config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(directory)
    return directory
