"""The frozen base model: which families are served, how one is loaded, and which of its linears an adapter may touch.

Loaded once per process, its weights never change afterwards: evaluation mode, no parameter requires a gradient. float32
on a CPU, bfloat16 on a GPU. A model of another family is refused by name before any weight is read.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from services.core.errors import InvalidArgumentError
from services.core.linears import ADAPTABLE_LINEARS

_ATTENTION, _HYBRID = frozenset({"full_attention"}), frozenset({"full_attention", "linear_attention"})
SUPPORTED_FAMILIES = {"llama": _ATTENTION, "qwen3": _ATTENTION, "qwen3_5": _HYBRID, "qwen3_5_text": _HYBRID}
"""Kinds of layers by family. Of qwen3_5, which also sees images, the language model is served."""

_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model and what the platform needs to know about it."""

    name: str
    """The name that clients use and that checkpoints record."""

    module: PreTrainedModel
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    """What it is served in."""

    stored_dtype: torch.dtype
    """What its files have."""

    max_context_length: int
    """Longest sequence, in tokens."""

    vocab_size: int
    """Rows of the embedding; token ids are below it. May exceed the tokenizer's."""

    eos_token_ids: frozenset[int]
    tokenizer: PreTrainedTokenizerBase

    tokenizer_files: dict[str, bytes]
    """Content by file name: all that AutoTokenizer.from_pretrained needs in a directory."""

    @property
    def trunk(self) -> nn.Module:
        """All of the model but the unembedding."""
        return self.module.get_submodule("model")

    @property
    def has_linear_attention(self) -> bool:
        """Whether some layers carry a state along a sequence instead of attending to its tokens."""
        return "linear_attention" in (getattr(self.config, "layer_types", None) or ())

    def adaptable_linears(self) -> dict[str, nn.Linear]:
        """Every linear that an adapter may touch, by full module name, in the model's own order."""
        return {
            name: module
            for name, module in self.module.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ADAPTABLE_LINEARS
        }


def load_base_model(source: str, *, name: str, device: str, dtype: torch.dtype | None = None) -> BaseModel:
    """Loads a base model from a Hugging Face name or a local directory.

    Raises:
        InvalidArgumentError: the model's family or architecture is not supported.
    """
    try:
        config = PreTrainedConfig.get_config_dict(source)[0]
    except OSError as error:
        message = (
            f"{source} is neither a directory with a config.json nor a Hugging Face name that can be read: {error}"
        )
        raise InvalidArgumentError.at("base_model", message, reason="UNREADABLE_BASE_MODEL") from None
    check_architecture(config, name)
    placed = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if placed.type == "cuda" else torch.float32
    module: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa")
    nn.Module.to(module.train(False).requires_grad_(False), placed)
    tokenizer = AutoTokenizer.from_pretrained(source)
    return BaseModel(
        name=name,
        module=module,
        config=module.config,
        device=placed,
        dtype=dtype,
        stored_dtype=_stored_dtype(config),
        max_context_length=module.config.max_position_embeddings,
        vocab_size=module.config.vocab_size,
        eos_token_ids=_eos_token_ids(module, tokenizer),
        tokenizer=tokenizer,
        tokenizer_files=_tokenizer_files(tokenizer),
    )


def check_architecture(config: dict[str, Any], name: str) -> None:
    """Refuses what would be computed wrongly: other families or kinds of layers, quantized weights, moving frequencies.

    Args:
        config: content of the model's config.json.
        name: the model's name, for the error.
    """
    family = config.get("model_type")
    supported = f"supported are full-precision dense models of the families {', '.join(SUPPORTED_FAMILIES)}"
    if family not in SUPPORTED_FAMILIES:
        raise InvalidArgumentError.at("base_model", f"{name} is of the family {family!r}; {supported}")
    language = config.get("text_config") or config
    layer_types = SUPPORTED_FAMILIES[family]
    other_layers = sorted(set(language.get("layer_types") or ()) - layer_types)
    if language.get("use_sliding_window") or other_layers:
        kinds = ", ".join(other_layers) or "sliding_attention"
        message = (
            f"{name} has layers of the kind {kinds}; {supported}, {family} with {' and '.join(sorted(layer_types))}"
        )
        raise InvalidArgumentError.at("base_model", message)
    rope_type = _rope_type(language)
    if rope_type in _BATCH_DEPENDENT_ROPE:
        message = f"{name} has rope_type {rope_type!r}, whose frequencies depend on the longest sequence of a batch"
        raise InvalidArgumentError.at("base_model", f"{message}; {supported} with fixed frequencies")
    if config.get("quantization_config"):
        raise InvalidArgumentError.at("base_model", f"{name} has quantized weights; {supported}")


def _rope_type(config: dict[str, Any]) -> str | None:
    """How rotary frequencies are scaled, by either of the names that configurations use."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope.get("rope_type", rope.get("type"))


def _stored_dtype(config: dict[str, Any]) -> torch.dtype:
    """The dtype that a config.json names, by either of the names that it has had; float32 if there is none."""
    language = config.get("text_config") or {}
    for content in (config, language):
        named = getattr(torch, str(content.get("dtype") or content.get("torch_dtype")), None)
        if isinstance(named, torch.dtype):
            return named
    return torch.float32


def _eos_token_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All tokens that end a text: the generation config's (one or several) and the tokenizer's."""
    generation = module.generation_config
    declared = generation.eos_token_id if generation is not None else None
    ids = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}
