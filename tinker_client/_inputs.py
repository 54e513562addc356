"""What goes into the API: frozen values that check themselves when they are made.

A mistake is reported where it is written. What only the platform can know (vocabulary, context length, supported
losses) is left to it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tinker_client._tensor_data import TensorData

LossFnInput = Any
"""TensorData, numpy array, torch tensor, or a list of numbers."""


@dataclass(frozen=True)
class EncodedTextChunk:
    """Text that is already tokenized."""

    tokens: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _token_list(self.tokens))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class ImageChunk:
    """The bytes of an image file; `expected_tokens`, if given, is compared with what the platform counts."""

    data: bytes = field(repr=False)
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.format not in ("png", "jpeg"):
            raise ValueError(f"format {self.format!r} is not allowed; allowed are 'png' and 'jpeg'")
        if not self.data:
            raise ValueError("an image must have data")

    @property
    def length(self) -> int:
        """Number of positions the image takes; ValueError if expected_tokens does not say it."""
        if self.expected_tokens is None:
            raise ValueError("the length of an image is known only with expected_tokens")
        return self.expected_tokens


ModelInputChunk = EncodedTextChunk | ImageChunk


@dataclass(frozen=True)
class ModelInput:
    """A sequence of chunks, read in order."""

    chunks: list[ModelInputChunk]

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunks", list(self.chunks))

    @classmethod
    def from_ints(cls, tokens: Sequence[int]) -> ModelInput:
        """A text of these tokens."""
        return cls([EncodedTextChunk(tokens)])

    @classmethod
    def empty(cls) -> ModelInput:
        """No chunks."""
        return cls([])

    def append(self, chunk: ModelInputChunk) -> ModelInput:
        """A new input with a chunk more."""
        return ModelInput([*self.chunks, chunk])

    def append_int(self, token: int) -> ModelInput:
        """A new input with a token more."""
        return self.append(EncodedTextChunk([token]))

    def to_ints(self) -> list[int]:
        """All tokens; ValueError if there is an image."""
        tokens: list[int] = []
        for chunk in self.chunks:
            if not isinstance(chunk, EncodedTextChunk):
                raise ValueError("a model input with an image cannot be written as tokens")
            tokens.extend(chunk.tokens)
        return tokens

    def length(self) -> int:
        """Number of positions; ValueError if there is an image that does not say its length."""
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True)
class Datum:
    """One training example; every input of the loss has one row for each position of `model_input`."""

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, LossFnInput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = {name: TensorData.from_value(name, value) for name, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", tensors)


@dataclass(frozen=True)
class AdamParams:
    """One AdamW step: decoupled weight decay; `grad_clip_norm` bounds the gradient's global norm, 0 turns that off."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn: logits / temperature, then top_k, then top_p on what is left.

    `max_tokens` None goes to the context limit; `top_k` -1 keeps all tokens; `stop` None is the model's end of
    sequence, [] nothing at all, else a string, strings or token ids; `seed` None is drawn by the platform.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: str | Sequence[str] | Sequence[int] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.stop is None or isinstance(self.stop, str):
            return
        kinds = {str if isinstance(item, str) else int for item in self.stop}
        if len(kinds) > 1:
            raise ValueError("stop mixes strings and token ids; allowed are strings, or token ids, or neither")
        stop = list(self.stop) if kinds == {str} else _token_list(self.stop)
        object.__setattr__(self, "stop", stop)


@dataclass(frozen=True)
class LoraConfig:
    """The shape of an adapter. `seed` None is drawn by the platform and recorded.

    Its scale is alpha / rank, or alpha / sqrt(rank) with `use_rslora`. `target_modules` names the adapted linears one
    by one (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head) in place of the train_ flags.
    """

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True
    alpha: int = 32
    use_rslora: bool = False
    target_modules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.target_modules is None:
            return
        if isinstance(self.target_modules, str) or not self.target_modules:
            raise ValueError("target_modules must be a list of at least one name, or None")
        if not (self.train_unembed and self.train_mlp and self.train_attn):
            raise ValueError("give either target_modules or train_ flags, and not both")
        object.__setattr__(self, "target_modules", list(self.target_modules))


def _token_list(tokens: Any) -> list[int]:
    values = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    if set(map(type, values)) <= {int}:
        return values
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise ValueError("tokens must be a flat sequence of integers") from None
