"""Requests to an engine and its answers: plain values, no tensors and no protos.

A request is complete: every default is resolved and every random choice is made by its seed, so that running it again
gives the same answer. The gateway has validated requests before; `check_request` is the engine's own guard, because a
token id outside the vocabulary would kill the process on a GPU.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

from services.core.errors import InvalidArgumentError, PlatformError
from services.core.sampling_limits import MAX_ALT_TOKENS, MAX_SAMPLES, MAX_TOPK_LOGPROBS, NO_TARGET

StopReason = Literal["stop", "length"]


@dataclass(frozen=True)
class StopRule:
    """Any of these tokens, or any of these strings as UTF-8 bytes, ends a sequence. Empty: only its length does."""

    token_ids: frozenset[int] = frozenset()
    strings: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters, all of them resolved."""

    max_tokens: int
    """Most tokens to generate; 0 in a request that only scores."""

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

    tenant: str = ""
    """Whose request it is: cached prefixes belong to a tenant."""

    include_prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    target_prompt_tokens: tuple[tuple[int, ...], ...] | None = None
    """For each prompt token the tokens to score in its place; the first row is never scored."""

    prompt_logprobs_last_n: int | None = None
    """Number of the prompt's last tokens that are scored; None for all."""

    prompt_alt_tokens: int = 0
    """Number of tokens to draw in the place of each prompt token but the first."""

    topk_sample_logprobs: int = 0
    include_raw_logprobs: bool = False
    streamed: bool = False
    """Whether the engine also returns token deltas."""

    @property
    def scores_prompt(self) -> bool:
        """Whether any score of prompt tokens is returned."""
        counts = self.topk_prompt_logprobs + self.prompt_alt_tokens
        return self.include_prompt_logprobs or counts > 0 or self.target_prompt_tokens is not None

    @property
    def first_scored_row(self) -> int:
        """The first row whose logits are needed: row i predicts prompt token i + 1."""
        last = len(self.prompt) - 1
        if not self.scores_prompt:
            return last
        return max(last - self.prompt_logprobs_last_n, 0) if self.prompt_logprobs_last_n is not None else 0

    @property
    def longest(self) -> int:
        """Most tokens that one sequence of it keeps in the KV store: the last generated token is never fed back."""
        return len(self.prompt) + max(self.params.max_tokens - 1, 0)


class TopkRow(Sequence[tuple[int, float]]):
    """(token id, log-probability) of the likeliest tokens of one position, likeliest first.

    Ten bytes an entry where a hundred are asked for, less than a tenth of what tuples take.
    """

    __slots__ = ("_logprobs", "_token_ids")

    def __init__(self, token_ids: Iterable[int] = (), logprobs: Iterable[float] = ()) -> None:
        """
        Args:
            token_ids: token ids.
            logprobs: as many, float32.
        """
        self._token_ids, self._logprobs = array("i", token_ids), array("f", logprobs)

    def __len__(self) -> int:
        return len(self._token_ids)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...
    @overload
    def __getitem__(self, index: slice) -> TopkRow: ...
    def __getitem__(self, index: int | slice) -> tuple[int, float] | TopkRow:
        if isinstance(index, slice):
            return TopkRow(self._token_ids[index], self._logprobs[index])
        return self._token_ids[index], self._logprobs[index]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self._token_ids, self._logprobs, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    @property
    def token_ids(self) -> Sequence[int]:
        """Token ids."""
        return self._token_ids

    @property
    def logprobs(self) -> Sequence[float]:
        """Their log-probabilities."""
        return self._logprobs


@dataclass(frozen=True)
class SampledTokens:
    """One completion."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    topk_logprobs: tuple[TopkRow, ...] | None = None
    """One per token; None if not requested."""

    raw_logprobs: tuple[float, ...] | None = None
    """One per token, at temperature 1; None if not requested."""


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
class AltTokens:
    """Tokens drawn in the place of one prompt token, and their log-probabilities at temperature 1."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class GenerationResult:
    """The answer to a request."""

    sequences: tuple[SampledTokens, ...]

    prompt_logprobs: tuple[float, ...] | None = None
    """One per prompt token, the first NaN; None if not requested."""

    topk_prompt_logprobs: tuple[TopkRow, ...] | None = None
    """One per prompt token, the first empty; None if not requested."""

    target_prompt_logprobs: tuple[tuple[float, ...], ...] | None = None
    """In the shape of the request's tokens, NaN where nothing was scored; None if not requested."""

    prompt_cache_hit_tokens: int = 0
    """Prompt tokens that were not computed for this request."""

    prompt_alt_tokens: tuple[AltTokens, ...] | None = None
    """One per prompt token but the first; None if not requested."""


@dataclass(frozen=True)
class Finished:
    """The end of a request."""

    name: str
    outcome: GenerationResult | PlatformError


def check_request(request: GenerationRequest, *, vocab_size: int, max_context_length: int) -> None:
    """Refuses a request that would break the engine or mean nothing.

    Args:
        request: the request.
        vocab_size: token ids are below it.
        max_context_length: most tokens of prompt and completion together.

    Raises:
        InvalidArgumentError: names the field and the rule that it breaks.
    """
    length, params = len(request.prompt), request.params
    if not 1 <= length <= max_context_length:
        raise InvalidArgumentError.must_be("prompt", f"1 to {max_context_length} tokens", f"{length} tokens")
    for position, token in enumerate(request.prompt):
        if not 0 <= token < vocab_size:
            rule = f"token ids from 0 to {vocab_size - 1}"
            raise InvalidArgumentError.must_be("prompt", rule, f"{token} at position {position}")
    _check_range("num_samples", request.num_samples, 0, MAX_SAMPLES)
    _check_range("topk_prompt_logprobs", request.topk_prompt_logprobs, 0, MAX_TOPK_LOGPROBS)
    _check_range("topk_sample_logprobs", request.topk_sample_logprobs, 0, MAX_TOPK_LOGPROBS)
    _check_range("prompt_alt_tokens_k", request.prompt_alt_tokens, 0, MAX_ALT_TOKENS)
    if request.prompt_logprobs_last_n is not None:
        _check_range("prompt_logprobs_last_n", request.prompt_logprobs_last_n, 1, length)
    if request.target_prompt_tokens is not None:
        _check_targets(request.target_prompt_tokens, length, vocab_size)
    if request.num_samples == 0:
        if not request.scores_prompt:
            raise InvalidArgumentError.must_be("num_samples", "at least 1 in a request that scores no prompt", 0)
        return
    _check_params(params)
    free = max_context_length - length
    if not 1 <= params.max_tokens <= free:
        rule = f"from 1 to {free}, what the context of {max_context_length} tokens leaves after a prompt of {length}"
        raise InvalidArgumentError.must_be("sampling_params.max_tokens", rule, params.max_tokens)


def _check_range(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidArgumentError.must_be(field, f"from {least} to {most}", value)


def _check_targets(rows: tuple[tuple[int, ...], ...], length: int, vocab_size: int) -> None:
    field = "target_prompt_logprobs"
    if len(rows) != length or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InvalidArgumentError.must_be(field, f"{length} rows of one length, one for each prompt token")
    if min(map(min, rows)) < NO_TARGET or max(map(max, rows)) >= vocab_size:
        raise InvalidArgumentError.must_be(field, f"token ids from 0 to {vocab_size - 1}, or {NO_TARGET} for none")


def _check_params(params: SamplingParams) -> None:
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise InvalidArgumentError.must_be("sampling_params.temperature", "finite and at least 0", params.temperature)
    if params.top_k < -1:
        raise InvalidArgumentError.must_be("sampling_params.top_k", "at least -1", params.top_k)
    if not 0 < params.top_p <= 1:
        raise InvalidArgumentError.must_be("sampling_params.top_p", "above 0 and at most 1", params.top_p)
