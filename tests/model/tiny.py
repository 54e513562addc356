"""Tiny base models of the supported families, with random weights large enough for errors to show."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

VOCAB_SIZE = 89
HIDDEN_SIZE = 40
EOS = 2


def tiny_config(family: str, *, tied: bool = True) -> PreTrainedConfig:
    """Two layers, grouped heads, sizes that no two of which are equal."""
    kind = {"qwen3": Qwen3Config, "llama": LlamaConfig}[family]
    return kind(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,  # flash attention takes multiples of 8
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
    )


def save_tiny_model(directory: Path, family: str, *, tied: bool = True) -> Path:
    """Writes a base model with its tokenizer, as a user has it on disk."""
    return save_model(directory, tiny_config(family, tied=tied))


def save_model(directory: Path, config: PreTrainedConfig) -> Path:
    """Writes a base model with random weights, and a tokenizer of one word per token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{index}": index for index in range(3, config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(directory)
    return directory
