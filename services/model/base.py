"""The frozen base model: how one is loaded, and where its parts are.

Loaded once per process, its weights never change afterwards: evaluation mode, no parameter requires a gradient. float32
on a CPU, bfloat16 on a GPU. A model of another family is refused by name before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from services.core.base_model_names import matching
from services.core.errors import InvalidArgumentError
from services.model.families import SUPPORTED_FAMILIES, Family, Keeps, KVShape, check_architecture, kv_shape
from services.model.fingerprint import Fingerprint, fingerprint_of
from services.model.loading import load_tokenizer, load_weights, model_directory, read_tokenizer_files, unreadable
from services.model.tokenizer_files import TokenizerFiles


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model and what the platform needs to know about it."""

    name: str
    """The name that checkpoints record, and that clients use."""

    family: Family
    """The row of its family: paths of its modules."""

    module: PreTrainedModel
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    """Dtype that it is served in."""

    stored_dtype: torch.dtype
    """Dtype of its files."""

    max_context_length: int
    """Longest sequence, in tokens."""

    vocab_size: int
    """Rows of the embedding; token ids are below it. May exceed the tokenizer's."""

    eos_token_ids: frozenset[int]
    tokenizer: PreTrainedTokenizerBase

    tokenizer_files: TokenizerFiles
    fingerprint: Fingerprint
    aliases: tuple[str, ...] = ()
    """Further names that clients use."""

    def is_called(self, name: str) -> bool:
        """Whether a name is one of this base model's."""
        return matching(name, (self.name, *self.aliases)) is not None

    @property
    def trunk(self) -> nn.Module:
        """All of the model but the unembedding."""
        return self.module.get_submodule(self.family.trunk)

    @property
    def unembedding(self) -> nn.Module:
        """The linear from hidden states to logits, or the linear that replaced it."""
        return self.module.get_submodule(self.family.unembedding)

    @property
    def unembedding_weight(self) -> nn.Parameter:
        """[V, D], in the dtype that the model is served in."""
        return self.module.get_parameter(f"{self.family.unembedding}.weight")

    @property
    def is_tied(self) -> bool:
        """True if embedding and unembedding are one weight."""
        return self.trunk.get_parameter(f"{self.family.embedding}.weight") is self.unembedding_weight

    @property
    def decoder_layers(self) -> list[nn.Module]:
        """The decoder layers in order."""
        return list(self.module.get_submodule(self.family.layers_path).children())

    def mixers(self, keeps: Keeps) -> list[nn.Module]:
        """The modules that mix tokens in the layers whose kind keeps this."""
        kinds = self.family.layer_kinds(self.config)
        layers = zip(self.decoder_layers, kinds, strict=True)
        return [layer.get_submodule(kind.mixer) for layer, kind in layers if kind.keeps == keeps]

    @property
    def has_linear_attention(self) -> bool:
        """True if some layers carry a state along a sequence instead of attending to its tokens."""
        return any(kind.keeps == "state" for kind in self.family.layer_kinds(self.config))

    @property
    def kv_shape(self) -> KVShape:
        """Size of the keys and values of a token."""
        return kv_shape(self.config)

    @property
    def activation(self) -> str | None:
        """Name of the MLPs' activation; None where the configuration has none."""
        name: str | None = getattr(self.config, self.family.activation_field, None)
        return name

    def hidden_states(self, tokens_T: Tensor, positions_T: Tensor, **sequences: object) -> Tensor:
        """Hidden states [T, D] of one packed row, as the trunk returns them.

        Args:
            tokens_T: int64 token ids.
            positions_T: int64, of each token in its sequence.
            sequences: arguments of the attention implementation that say where the row's sequences lie.
        """
        row = {"input_ids": tokens_T[None], "position_ids": positions_T[None], "use_cache": False}
        hidden_1TD: Tensor = self.trunk(**row, **sequences).last_hidden_state
        return hidden_1TD[0]

    def adaptable_linears(self) -> dict[str, nn.Linear]:
        """Every linear that an adapter may touch, by full module name, in the model's own order.

        Raises:
            InvalidArgumentError: the model lacks one that its family has.
        """
        paths = self.family.linear_paths(self.config)
        linears = {
            name: module
            for name, module in self.module.named_modules()
            if name in paths and isinstance(module, nn.Linear)
        }
        if missing := sorted(paths - linears.keys()):
            rule = f"a model with the linears of its family, {self.config.model_type}"
            raise InvalidArgumentError.must_be("base_model", rule, f"{self.name} without {missing[0]}")
        return linears

    def replace_activations(self, replacement: Callable[[nn.Module], nn.Module]) -> bool:
        """Replaces the activation of every MLP.

        Args:
            replacement: makes it from the activation.

        Returns:
            False, and nothing is replaced, where some layer has no MLP whose activation is a module.
        """
        block = self.family.feed_forward
        if block is None:
            return False
        modules = [layer.get_submodule(block.path) for layer in self.decoder_layers]
        if not all(isinstance(getattr(module, block.activation, None), nn.Module) for module in modules):
            return False
        for module in modules:
            setattr(module, block.activation, replacement(module.get_submodule(block.activation)))
        return True


def load_base_model(
    source: str,
    *,
    name: str,
    device: str,
    dtype: torch.dtype | None = None,
    accepted_fingerprints: Collection[str] = (),
    aliases: Collection[str] = (),
) -> BaseModel:
    """Loads a base model.

    Args:
        source: Hugging Face name or local directory.
        name: the name that checkpoints record, and that clients use.
        device: where to.
        dtype: what it is served in; None: what the device is best at.
        accepted_fingerprints: of base models that count as this one.
        aliases: further names that clients use.

    Raises:
        InvalidArgumentError: the model's family or architecture is not supported, or its files are not whole.
    """
    try:
        config = PreTrainedConfig.get_config_dict(source)[0]
    except OSError as error:
        rule = "a directory with a config.json, or a Hugging Face name that can be read"
        raise unreadable(rule, source, str(error)) from None
    check_architecture(config, name)
    placed = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if placed.type == "cuda" else torch.float32
    module = load_weights(source, dtype)
    tokenizer = load_tokenizer(source, module.config.vocab_size)
    files = read_tokenizer_files(source, tokenizer)
    fingerprint = fingerprint_of(model_directory(source), files.model_config, files.own)
    nn.Module.to(module.train(False).requires_grad_(False), placed)
    base = BaseModel(
        name=name,
        family=SUPPORTED_FAMILIES[config["model_type"]],
        module=module,
        config=module.config,
        device=placed,
        dtype=dtype,
        stored_dtype=_stored_dtype(config),
        max_context_length=module.config.max_position_embeddings,
        vocab_size=module.config.vocab_size,
        eos_token_ids=_eos_token_ids(module, tokenizer),
        tokenizer=tokenizer,
        tokenizer_files=files,
        fingerprint=Fingerprint(fingerprint, frozenset(accepted_fingerprints)),
        aliases=tuple(aliases),
    )
    base.adaptable_linears()  # refuses here, not with the first run, where one is missing
    return base


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
