"""Bodies of /v1/completions and /v1/chat/completions. What is not here is refused by name, never ignored.

Some parameters are known for the values alone that change nothing, because client libraries send them. null says what
an absent field says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field

from services.core.errors import InvalidArgumentError, quoted
from services.core.sampling_limits import MAX_TOPK_LOGPROBS
from services.gateway.http.body import Fields
from tinker_proto.v1 import sampling_pb2

MAX_PROMPTS = 64
MAX_CHOICES = 128
"""OpenAI's own limit of `n`."""

DEFAULT_COMPLETION_TOKENS = 16


ValueT = TypeVar("ValueT", int, bool, str)


def _null_means(default: ValueT) -> BeforeValidator:
    """null in the place of a value that has a default."""
    return BeforeValidator(lambda value: default if value is None else value)


class StreamOptions(Fields):
    """What a stream ends with."""

    include_usage: Annotated[bool, _null_means(False)] = False


class ResponseFormat(Fields):
    """Free text; nothing constrains what is drawn."""

    type: Literal["text"] = "text"


class GenerationFields(Fields, ABC):
    """What both endpoints take."""

    model: str = Field(min_length=1, max_length=1000)
    n: Annotated[int, _null_means(1)] = Field(default=1, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = None
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: Annotated[bool, _null_means(False)] = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    repetition_penalty: Literal[1] | None = None
    length_penalty: Literal[1] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None

    @property
    def stops(self) -> list[str]:
        """Strings that end a generation."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    @abstractmethod
    def top_logprobs_count(self) -> int:
        """Number of the likeliest tokens that the answer has for a position."""

    @property
    @abstractmethod
    def wants_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""

    def sampling_params(self, max_tokens: int | None) -> sampling_pb2.SamplingParams:
        """How tokens are drawn; the end-of-sequence token always ends a generation."""
        params = sampling_pb2.SamplingParams(
            max_tokens=max_tokens, seed=self.seed, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k
        )
        if self.stops:
            params.stop.strings.extend(self.stops)
        return params

    def check_stream(self) -> None:
        """Refuses what a stream cannot carry.

        Raises:
            InvalidArgumentError: names the parameter.
        """
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            raise InvalidArgumentError.at("stream_options.include_usage", "requires stream=true")
        if not self.stream:
            return
        if self.top_logprobs_count:
            field = "top_logprobs" if isinstance(self, Chat) else "logprobs"
            rule = "0 with stream=true, which has the log-probabilities of the chosen tokens only"
            raise InvalidArgumentError.must_be(field, rule, self.top_logprobs_count)
        if self.wants_logprobs and self.temperature not in (None, 0, 1):
            raise InvalidArgumentError.must_be("temperature", "0 or 1 with stream=true and logprobs", self.temperature)


class Completion(GenerationFields):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, _null_means(DEFAULT_COMPLETION_TOKENS)] = Field(
        default=DEFAULT_COMPLETION_TOKENS, ge=0, lt=2**31
    )
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOPK_LOGPROBS)
    echo: Annotated[bool, _null_means(False)] = False
    best_of: int | None = None
    suffix: Literal[""] | None = None

    @property
    def top_logprobs_count(self) -> int:
        """As in GenerationFields."""
        return self.logprobs or 0

    @property
    def wants_logprobs(self) -> bool:
        """As in GenerationFields."""
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, each a text or its tokens.

        Raises:
            InvalidArgumentError: there are none, or too many.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not len(self.prompt) >= 1:
            raise InvalidArgumentError.must_be("prompt", "a text, token ids, or a list of either", "an empty list")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        if len(self.prompt) > MAX_PROMPTS:
            raise InvalidArgumentError.must_be("prompt", f"at most {MAX_PROMPTS} prompts", len(self.prompt))
        return self.prompt

    def check(self) -> None:
        """Refuses combinations that mean nothing here.

        Raises:
            InvalidArgumentError: names the parameter.
        """
        self.check_stream()
        if self.best_of not in (None, self.n):
            message = f"must equal n (got {quoted(self.best_of)}); extra samples are not supported"
            raise InvalidArgumentError.at("best_of", message)
        if self.echo and self.stream:
            raise InvalidArgumentError.must_be("echo", "false with stream=true", "true")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidArgumentError.must_be("max_tokens", "at least 1, or 0 with echo=true", self.max_tokens)


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Fields):
    """One turn."""

    role: str = Field(min_length=1, max_length=100)
    content: Annotated[str | list[TextPart], _null_means("")]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """The turn as chat templates take it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text} | ({"name": self.name} if self.name is not None else {})


class Chat(GenerationFields):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOPK_LOGPROBS)
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def top_logprobs_count(self) -> int:
        """As in GenerationFields."""
        return self.top_logprobs or 0

    @property
    def wants_logprobs(self) -> bool:
        """As in GenerationFields."""
        return bool(self.logprobs)

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate; None: as many as fit the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        """Refuses combinations that mean nothing here.

        Raises:
            InvalidArgumentError: names the parameter.
        """
        self.check_stream()
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgumentError.at("top_logprobs", "requires logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            rule = f"equal to max_completion_tokens, {self.max_completion_tokens}, if both are set"
            raise InvalidArgumentError.must_be("max_tokens", rule, self.max_tokens)
