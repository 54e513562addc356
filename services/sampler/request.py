"""What the engine is asked and what it answers: plain values, no tensors and no protos.

A request is complete: every default is resolved and every random choice is made by its seed, so that running it again
gives the same answer. `check_request` is the engine's own guard; the gateway has validated before, but a token id
outside the vocabulary would kill the process on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.core.errors import InvalidArgumentError, PlatformError
from services.core.sampling_limits import MAX_SAMPLES, MAX_TOPK_LOGPROBS

StopReason = Literal["stop", "length"]


@dataclass(frozen=True)
class StopRule:
    """Any of these tokens, or any of these strings as UTF-8 bytes, ends a sequence. Empty: only its length does."""

    token_ids: frozenset[int] = frozenset()
    strings: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and what ends a sequence. `max_tokens` is resolved; 0 in a request that only scores."""

    max_tokens: int
    seed: int = 0
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop: StopRule = field(default_factory=StopRule)


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue `num_samples` times, or only to score when that is 0."""

    name: str
    """The operation's name."""

    prompt: tuple[int, ...]
    """Content ids (services.core.chunks)."""

    num_samples: int
    params: SamplingParams

    adapter: Path | None = None
    """Directory of a checkpoint, which never changes; None for the base model."""

    include_prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    target_prompt_tokens: tuple[tuple[int, ...], ...] | None = None
    """For each prompt token the tokens to score in its place; the first row is never scored."""

    prompt_logprobs_last_n: int | None = None
    """How many of the prompt's last tokens are scored; None for all."""

    topk_sample_logprobs: int = 0
    include_raw_logprobs: bool = False
    streamed: bool = False
    """Whether tokens are wanted as they come."""

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's own rows are wanted."""
        return self.include_prompt_logprobs or self.topk_prompt_logprobs > 0 or self.target_prompt_tokens is not None

    @property
    def first_scored_row(self) -> int:
        """The first row that is wanted: row i predicts prompt token i + 1. Those before it need not be computed."""
        last = len(self.prompt) - 1
        if not self.scores_prompt:
            return last
        return max(last - self.prompt_logprobs_last_n, 0) if self.prompt_logprobs_last_n is not None else 0

    @property
    def longest(self) -> int:
        """Most tokens that one sequence of it keeps in the KV store: the last generated token is never fed back."""
        return len(self.prompt) + max(self.params.max_tokens - 1, 0)


TopkRow = tuple[tuple[int, float], ...]
"""(token id, log-probability) of the likeliest tokens of one position, likeliest first."""


@dataclass(frozen=True)
class SampledTokens:
    """One completion."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    topk_logprobs: tuple[TopkRow, ...] | None = None
    """One per token; None if not asked for."""

    raw_logprobs: tuple[float, ...] | None = None
    """One per token, at temperature 1; None if not asked for."""


@dataclass(frozen=True)
class TokenDelta:
    """Tokens of one sequence that a step has added, `start` tokens into the completion."""

    name: str
    sequence_index: int
    start: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason | None


@dataclass(frozen=True)
class GenerationResult:
    """The answer to a request."""

    sequences: tuple[SampledTokens, ...]

    prompt_logprobs: tuple[float, ...] | None = None
    """One per prompt token, the first NaN; None if not asked for."""

    topk_prompt_logprobs: tuple[TopkRow, ...] | None = None
    """One per prompt token, the first empty; None if not asked for."""

    target_prompt_logprobs: tuple[tuple[float, ...], ...] | None = None
    """In the shape of the request's tokens, NaN where nothing was scored; None if not asked for."""

    prompt_cache_hit_tokens: int = 0
    """Prompt tokens that were not computed for this request."""


@dataclass(frozen=True)
class Finished:
    """How a request ended."""

    name: str
    outcome: GenerationResult | PlatformError


def check_request(request: GenerationRequest, *, vocab_size: int, max_context_length: int) -> None:
    """Refuses what would break the engine or mean nothing.

    Raises:
        InvalidArgumentError: names the field and what is allowed.
    """
    length, params = len(request.prompt), request.params
    if not 1 <= length <= max_context_length:
        raise InvalidArgumentError.at("prompt", f"has {length} tokens; allowed are 1 to {max_context_length}")
    for position, token in enumerate(request.prompt):
        if not 0 <= token < vocab_size:
            raise InvalidArgumentError.at(
                "prompt", f"token {position} is {token}; allowed are 0 to {vocab_size - 1}, the base model's vocabulary"
            )
    if not 0 <= request.num_samples <= MAX_SAMPLES:
        raise InvalidArgumentError.at("num_samples", f"is {request.num_samples}; allowed are 0 to {MAX_SAMPLES}")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs"):
        count = getattr(request, name)
        if not 0 <= count <= MAX_TOPK_LOGPROBS:
            raise InvalidArgumentError.at(name, f"is {count}; allowed are 0 to {MAX_TOPK_LOGPROBS}")
    if request.prompt_logprobs_last_n is not None and not 1 <= request.prompt_logprobs_last_n <= length:
        raise InvalidArgumentError.at(
            "prompt_logprobs_last_n", f"is {request.prompt_logprobs_last_n}; allowed are 1 to {length}"
        )
    if request.target_prompt_tokens is not None:
        _check_targets(request.target_prompt_tokens, length, vocab_size)
    if request.num_samples == 0:
        if not request.scores_prompt:
            raise InvalidArgumentError.at("num_samples", "is 0 and no prompt score is asked for; nothing to do")
        return
    _check_params(params)
    room = max_context_length - length
    if not 1 <= params.max_tokens <= room:
        raise InvalidArgumentError.at(
            "sampling_params.max_tokens",
            f"is {params.max_tokens} after a prompt of {length}; allowed are 1 to {room}, because prompt and completion"
            f" together must fit the context of {max_context_length} tokens",
        )


def _check_targets(rows: tuple[tuple[int, ...], ...], length: int, vocab_size: int) -> None:
    if len(rows) != length or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InvalidArgumentError.at(
            "target_prompt_logprobs", f"must have {length} rows of one length, one for each prompt token"
        )
    if min(map(min, rows)) < 0 or max(map(max, rows)) >= vocab_size:
        raise InvalidArgumentError.at("target_prompt_logprobs", f"has a token outside 0 to {vocab_size - 1}")


def _check_params(params: SamplingParams) -> None:
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise InvalidArgumentError.at(
            "sampling_params.temperature", f"is {params.temperature}; it must be finite and at least 0"
        )
    if params.top_k < -1:
        raise InvalidArgumentError.at("sampling_params.top_k", f"is {params.top_k}; it must be -1 or more")
    if not 0 < params.top_p <= 1:
        raise InvalidArgumentError.at("sampling_params.top_p", f"is {params.top_p}; it must be above 0 and at most 1")
