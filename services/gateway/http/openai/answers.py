"""Answers of both endpoints: finish reasons, usage, and the text of each choice as it grows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import StreamingResponse

from services.core.errors import InternalError, PlatformError, UnavailableError
from services.core.queue.connection import TRANSIENT_ERRORS
from services.gateway.http.disconnect import unless_disconnected
from services.gateway.http.openai.continuation import TextStream
from services.gateway.http.openai.errors import content_of
from services.gateway.http.openai.generations import NewTokens
from services.gateway.http.openai.text import ModelText
from tinker_proto.v1 import data_pb2, sampling_pb2

_log = structlog.get_logger(__name__)

SILENCE_S = 20.0
"""Proxies close connections that are silent for a minute; a comment in the stream keeps them open."""

_COMMENT = ": waiting\n\n"

FINISH_REASONS: Mapping[int, str] = {
    sampling_pb2.STOP_REASON_STOP: "stop",
    sampling_pb2.STOP_REASON_LENGTH: "length",
}


def prompt_of(tokens: Sequence[int]) -> data_pb2.ModelInput:
    """Tokens as a prompt."""
    return data_pb2.ModelInput(chunks=[data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=tokens))])


def generated_tokens(response: sampling_pb2.SampleResponse) -> int:
    """Tokens of all samples together."""
    return sum(len(sequence.tokens) for sequence in response.sequences)


def usage(prompts: Sequence[Sequence[int]], responses: Sequence[sampling_pb2.SampleResponse]) -> dict[str, Any]:
    """Tokens of a request: each prompt counts once, however many choices it has."""
    read = sum(len(prompt) for prompt in prompts)
    written = sum(map(generated_tokens, responses))
    cached = sum(response.prompt_cache_hit_tokens for response in responses)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class GrowingChoice:
    """One choice of a stream: takes its tokens in order, whether they came alone or with the response."""

    def __init__(self, text: TextStream) -> None:
        self._text = text
        self._known = 0
        self._ended = False

    def take(self, new: NewTokens) -> tuple[str, str | None]:
        """The new text, and the finish reason with the last of it."""
        self._known += len(new.tokens)
        text = self._text.add(new.tokens)
        if not new.stop_reason:
            return text, None
        self._ended = True
        return text + self._text.end(), FINISH_REASONS[new.stop_reason]

    def rest(self, prompt: int, index: int, sequence: sampling_pb2.SampledSequence) -> NewTokens | None:
        """What of the finished sequence has not been taken yet; None if nothing is left to say."""
        if self._ended:
            return None
        tokens, logprobs = sequence.tokens[self._known :], sequence.logprobs[self._known :]
        return NewTokens(prompt, index, tokens, logprobs, sequence.stop_reason)


async def growing(
    stream: AsyncGenerator[Any, None], text: ModelText, prompts: Sequence[Sequence[int]], stops: Sequence[str]
) -> AsyncGenerator[tuple[NewTokens, str, str | None] | list[sampling_pb2.SampleResponse], None]:
    """New tokens with their text and finish reason, gaps filled from the responses; the responses come last."""
    choices: dict[tuple[int, int], GrowingChoice] = {}

    def choice_of(prompt: int, sequence: int) -> GrowingChoice:
        if (prompt, sequence) not in choices:
            choices[prompt, sequence] = GrowingChoice(text.stream(prompts[prompt], stops))
        return choices[prompt, sequence]

    async with aclosing(stream):
        async for item in stream:
            if isinstance(item, NewTokens):
                yield item, *choice_of(item.prompt, item.sequence).take(item)
                continue
            for prompt, response in enumerate(item):
                for index, sequence in enumerate(response.sequences):
                    choice = choice_of(prompt, index)
                    if (rest := choice.rest(prompt, index, sequence)) is not None:
                        yield rest, *choice.take(rest)
            yield item


async def event_stream(
    request: Request, contents: AsyncGenerator[dict[str, Any], None], silence_s: float = SILENCE_S
) -> StreamingResponse:
    """Server-sent events. The first is awaited for a while: what is refused is answered with a status instead.

    Args:
        request: of the caller.
        contents: the events.
        silence_s: seconds without an event after which a comment is sent, and after which the stream begins at last.

    Raises:
        PlatformError: there is no first event.
        CallerDisconnectedError: nobody waits for it.
    """
    first = asyncio.ensure_future(anext(contents))
    try:
        await unless_disconnected(request, _settled(first, silence_s))
    except BaseException:
        first.cancel()
        raise
    if first.done():
        first.result()

    async def events() -> AsyncIterator[str]:
        try:
            async with aclosing(_spaced(first, contents, silence_s)) as items:
                async for content in items:
                    yield _event(content) if content is not None else _COMMENT
        except PlatformError as error:
            yield _event(content_of(error))
            return
        except TRANSIENT_ERRORS:
            yield _event(content_of(UnavailableError("the queue was lost on the way; send the request again")))
            return
        except Exception as error:  # without an event the caller would see a connection that breaks off
            known = InternalError.of_request()
            _log.error("stream failed", incident=known.incident, path=request.url.path, exc_info=error)
            yield _event(content_of(known))
            return
        yield "data: [DONE]\n\n"

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def _settled(task: asyncio.Future[Any], seconds: float) -> None:
    await asyncio.wait({task}, timeout=seconds)


async def _spaced(
    first: asyncio.Future[dict[str, Any]], contents: AsyncGenerator[dict[str, Any], None], silence_s: float
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Contents from a first one on that is awaited already, with None after every silence."""
    following = first
    try:
        while True:
            await _settled(following, silence_s)
            if not following.done():
                yield None
                continue
            try:
                content = following.result()
            except StopAsyncIteration:
                return
            yield content
            following = asyncio.ensure_future(anext(contents))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await contents.aclose()


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
