"""Inputs of the API: frozen values that check themselves when they are made.

A mistake is reported where it is written. What only the platform can know (vocabulary, context length, supported
losses) is left to it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tinker_client._readable import Readable
from tinker_client._tensor_data import TensorData

LossFnInput = Any
"""TensorData, numpy array, torch tensor, or a list of numbers."""


@dataclass(frozen=True, repr=False)
class EncodedTextChunk(Readable):
    """Text that is already tokenized.

    Attributes:
        tokens: token ids, a flat sequence of integers (or an array of them); kept as a list.

    Raises:
        ValueError: `tokens` is not a flat sequence of integers.
    """

    tokens: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _token_list(self.tokens))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True, repr=False)
class ImageChunk(Readable):
    """An image file.

    Attributes:
        data: bytes of the file, not empty.
        format: "png" or "jpeg".
        expected_tokens: number of positions the image takes, which the platform compares with its own count; None:
            unknown.

    Raises:
        ValueError: `format` is another one, or `data` is empty.
    """

    data: bytes = field(repr=False)
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.format not in ("png", "jpeg"):
            raise ValueError(f"format: must be 'png' or 'jpeg' (got {self.format!r})")
        if not self.data:
            raise ValueError("data: must be the bytes of an image file (got none)")

    @property
    def length(self) -> int:
        """Number of positions the image takes.

        Raises:
            ValueError: `expected_tokens` is None.
        """
        if self.expected_tokens is None:
            raise ValueError("expected_tokens: must be set to know the length of an image (got None)")
        return self.expected_tokens


ModelInputChunk = EncodedTextChunk | ImageChunk


@dataclass(frozen=True, repr=False)
class ModelInput(Readable):
    """A sequence of chunks, read in order; never changes.

    Attributes:
        chunks: EncodedTextChunk and ImageChunk values.
    """

    chunks: list[ModelInputChunk]

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunks", list(self.chunks))

    @classmethod
    def from_ints(cls, tokens: Sequence[int]) -> ModelInput:
        """Makes an input of one text chunk.

        Args:
            tokens: token ids, a flat sequence of integers.

        Raises:
            ValueError: `tokens` is not a flat sequence of integers.
        """
        return cls([EncodedTextChunk(tokens)])

    @classmethod
    def empty(cls) -> ModelInput:
        """Makes an input without chunks, to append to."""
        return cls([])

    def append(self, chunk: ModelInputChunk) -> ModelInput:
        """Returns a new input with one more chunk at the end.

        Args:
            chunk: the chunk to add.
        """
        return ModelInput([*self.chunks, chunk])

    def append_int(self, token: int) -> ModelInput:
        """Returns a new input with one more text chunk, of a single token, at the end.

        Args:
            token: token id.
        """
        return self.append(EncodedTextChunk([token]))

    def to_ints(self) -> list[int]:
        """Returns the token ids of all chunks in order.

        Raises:
            ValueError: a chunk is an image.
        """
        tokens: list[int] = []
        for chunk in self.chunks:
            if not isinstance(chunk, EncodedTextChunk):
                raise ValueError(f"chunks: must be text to be returned as tokens (got {type(chunk).__name__})")
            tokens.extend(chunk.tokens)
        return tokens

    def length(self) -> int:
        """Returns the number of positions.

        Raises:
            ValueError: an image has no `expected_tokens`.
        """
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True, repr=False)
class Datum(Readable):
    """One training example.

    Row i of every loss input belongs to position i of the model input, which predicts token i + 1.

    Attributes:
        model_input: the N positions that the model reads.
        loss_fn_inputs: arrays by name, all of the shape of "target_tokens" ([N] or [N, K]): "target_tokens" is int64,
            the others ("weights", "logprobs", "advantages", "mask", ...) float32. Each loss takes its own
            (docs/numerics.md). Values may be TensorData, numpy arrays, torch tensors or lists; they become TensorData.

    Raises:
        ValueError: a value cannot become TensorData; names the input.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, LossFnInput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = {name: TensorData.from_value(name, value) for name, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", tensors)


@dataclass(frozen=True)
class AdamParams:
    """Parameters of one AdamW step, with the meaning they have in torch.optim.AdamW.

    Attributes:
        learning_rate: step size, finite and at least 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the square root of the second moment, greater than 0.
        weight_decay: decoupled weight decay, at least 0.
        grad_clip_norm: largest global norm of the run's LoRA gradient; 0 or less: no clipping.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn: logits / temperature, then top_k, then top_p on what is left.

    Attributes:
        max_tokens: most tokens to generate, at least 1; None: up to the context limit.
        temperature: finite and at least 0; 0 takes the likeliest token.
        top_p: keep the smallest set of likeliest tokens whose probability reaches this, in (0, 1].
        top_k: keep this many likeliest tokens; -1 or 0 keeps all.
        stop: what ends a sequence before max_tokens. None: the model's end-of-sequence tokens. A string or strings:
            these, and end-of-sequence. Token ids: these alone. []: nothing. What stops is part of the result.
        seed: the same request with the same seed gives the same tokens (docs/numerics.md says where); None: drawn by
            the platform.

    Raises:
        ValueError: `stop` mixes strings and token ids.
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
            raise ValueError("stop: must be all strings or all token ids (got a mix)")
        stop = list(self.stop) if kinds == {str} else _token_list(self.stop)
        object.__setattr__(self, "stop", stop)


@dataclass(frozen=True)
class LoraConfig:
    """Shape of an adapter.

    Attributes:
        rank: at least 1, at most the platform's limit (SupportedModel.max_lora_rank).
        seed: seed of the initialisation; None: drawn by the platform and recorded.
        train_unembed: adapt lm_head.
        train_mlp: adapt the gate, up and down projections.
        train_attn: adapt the q, k, v and o projections.
        alpha: numerator of the scale alpha / rank, at least 1.
        use_rslora: scale by alpha / sqrt(rank) instead.
        target_modules: names of the adapted linears (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj,
            lm_head), instead of the three train_ flags; None: what the flags say.
        rank_pattern: ranks that are not `rank`, by full name of the linear; only imported adapters have any.
        alpha_pattern: numerators that are not `alpha`, by full name of the linear; only imported adapters have any.

    An imported adapter may have a fraction as `alpha`, and full names of linears as `target_modules`.

    Raises:
        ValueError: `target_modules` is empty, is a string, or is given with a train_ flag that is False.
    """

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True
    alpha: float = 32
    use_rslora: bool = False
    target_modules: Sequence[str] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target_modules is None:
            return
        if isinstance(self.target_modules, str) or not self.target_modules:
            raise ValueError(
                f"target_modules: must be a list of at least one name, or None (got {self.target_modules!r})"
            )
        if not (self.train_unembed and self.train_mlp and self.train_attn):
            raise ValueError("target_modules: must be None if a train_ flag is False (got both)")
        object.__setattr__(self, "target_modules", list(self.target_modules))


def _token_list(tokens: Any) -> list[int]:
    values = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    if set(map(type, values)) <= {int}:
        return values
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise ValueError(
            f"tokens: must be a flat sequence of integers (got {type(tokens).__name__} of something else)"
        ) from None
