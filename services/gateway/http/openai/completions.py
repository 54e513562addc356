"""POST /v1/completions: texts or tokens go on."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.core.errors import InvalidArgumentError
from services.gateway.http.backend import Backend
from services.gateway.http.body import read_json, takes
from services.gateway.http.disconnect import unless_disconnected
from services.gateway.http.openai.answers import (
    FINISH_REASONS,
    event_stream,
    generated_tokens,
    growing,
    prompt_of,
    usage,
)
from services.gateway.http.openai.continuation import before_stop
from services.gateway.http.openai.fields import Completion
from services.gateway.http.openai.generations import Generations, NewTokens
from services.gateway.http.openai.targets import Target, Targets
from services.gateway.http.openai.text import ModelText
from tinker_proto.v1 import sampling_pb2


@dataclass(frozen=True)
class _Prepared:
    """A request in the platform's terms."""

    fields: Completion
    target: Target
    prompts: Sequence[Sequence[int]]
    requests: Sequence[sampling_pb2.SampleRequest]

    def head(self) -> dict[str, Any]:
        """What every answer and every event begins with."""
        return {
            "id": f"cmpl-{self.target.sampling_session_id}:{self.requests[0].seq_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.fields.model,
        }


class Completions:
    """The endpoint."""

    def __init__(self, backend: Backend, targets: Targets, generations: Generations) -> None:
        self._backend = backend
        self._targets = targets
        self._generations = generations

    @takes(Completion)
    async def create(self, request: Request) -> Response:
        """Continues prompts."""
        tenant = await self._backend.tenant(request)
        prepared = await self._prepare(tenant, await read_json(request, Completion))
        if prepared.fields.stream:
            return await event_stream(request, self._events(tenant, prepared))
        responses = await unless_disconnected(request, self._generations.run(tenant, prepared.requests))
        size = sum(generated_tokens(response) for response in responses)
        choices = await self._backend.work.in_thread(tenant, size, _choices, prepared, responses)
        return JSONResponse({**prepared.head(), "choices": choices, "usage": usage(prepared.prompts, responses)})

    async def _prepare(self, tenant: str, fields: Completion) -> _Prepared:
        fields.check()
        target = await self._targets.of(tenant, fields.model)
        for prompt in fields.prompts:
            if isinstance(prompt, str):
                target.check_length("prompt", len(prompt))
            else:
                target.check_tokens("prompt", prompt)
        size = sum(len(prompt) for prompt in fields.prompts)
        prompts = await self._backend.work.in_thread(tenant, size, _tokens, fields, target)
        scored = fields.echo and fields.wants_logprobs
        requests = [
            sampling_pb2.SampleRequest(
                sampling_session_id=target.sampling_session_id,
                prompt=prompt_of(prompt),
                num_samples=fields.n,
                sampling_params=fields.sampling_params(max(1, fields.max_tokens)),
                include_prompt_logprobs=scored,
                topk_prompt_logprobs=fields.top_logprobs_count if scored else 0,
                topk_sample_logprobs=fields.top_logprobs_count,
                include_raw_logprobs=fields.wants_logprobs,
            )
            for prompt in prompts
        ]
        return _Prepared(fields, target, prompts, requests)

    async def _events(self, tenant: str, prepared: _Prepared) -> AsyncGenerator[dict[str, Any], None]:
        fields, text = prepared.fields, prepared.target.text
        stream = self._generations.stream(tenant, prepared.requests)
        head, told = None, set()
        async with aclosing(growing(stream, text, prepared.prompts, fields.stops)) as items:
            async for item in items:
                head = head or prepared.head()
                if isinstance(item, list):
                    if fields.stream_options is not None and fields.stream_options.include_usage:
                        yield {**head, "choices": [], "usage": usage(prepared.prompts, item)}
                    continue
                new, words, finish_reason = item
                piece = _piece(fields, text, new, words, finish_reason)
                if fields.return_token_ids and piece["index"] not in told:
                    told.add(piece["index"])
                    piece["prompt_token_ids"] = list(prepared.prompts[new.prompt])
                yield {**head, "choices": [piece]}


def _tokens(fields: Completion, target: Target) -> list[list[int]]:
    prompts = [target.text.tokens(prompt) if isinstance(prompt, str) else list(prompt) for prompt in fields.prompts]
    for prompt in prompts:
        target.check_tokens("prompt", prompt)
        if not prompt:
            raise InvalidArgumentError.must_be("prompt", "at least one token", "none")
        if any(not -(2**31) <= token < 2**31 for token in prompt):
            raise InvalidArgumentError.must_be("prompt", "token ids of 32 bits")
    return prompts


def _choices(prepared: _Prepared, responses: Sequence[sampling_pb2.SampleResponse]) -> list[dict[str, Any]]:
    return [
        _choice(prepared, index * prepared.fields.n + i, index, response, sequence)
        for index, response in enumerate(responses)
        for i, sequence in enumerate(response.sequences)
    ]


def _choice(
    prepared: _Prepared,
    number: int,
    index: int,
    response: sampling_pb2.SampleResponse,
    sequence: sampling_pb2.SampledSequence,
) -> dict[str, Any]:
    fields, text = prepared.fields, prepared.target.text
    kept = len(sequence.tokens) if fields.max_tokens else 0
    prompt, tokens = prepared.prompts[index], list(sequence.tokens[:kept])
    words = before_stop(text.added(prompt, tokens), fields.stops)
    token_ids = {"prompt_token_ids": list(prompt), "token_ids": tokens} if fields.return_token_ids else {}
    logprobs: list[float | None] = list(sequence.raw_logprobs[:kept])
    top = list(sequence.topk_logprobs[:kept])
    if fields.echo:
        words = text.text(prompt) + words
        tokens = [*prompt, *tokens]
        logprobs = [*(None if math.isnan(value) else value for value in response.prompt_logprobs), *logprobs]
        top = [*response.topk_prompt_logprobs, *top]
    return {
        "index": number,
        "text": words,
        "finish_reason": FINISH_REASONS[sequence.stop_reason] if kept else "length",
        "logprobs": _logprobs(text, tokens, logprobs, top) if fields.wants_logprobs else None,
        **token_ids,
    }


def _piece(
    fields: Completion, text: ModelText, new: NewTokens, words: str, finish_reason: str | None
) -> dict[str, Any]:
    logprobs = _logprobs(text, list(new.tokens), list(new.logprobs), []) if fields.wants_logprobs else None
    index = new.prompt * fields.n + new.sequence
    piece: dict[str, Any] = {"index": index, "text": words, "finish_reason": finish_reason, "logprobs": logprobs}
    return piece | ({"token_ids": list(new.tokens)} if fields.return_token_ids else {})


def _logprobs(
    text: ModelText,
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    top: Sequence[sampling_pb2.TopkLogprobs],
) -> dict[str, Any]:
    """Parallel lists, one entry a token; offsets are in characters of the tokens' own texts, from the first one on."""
    words = [text.token_text(token) for token in tokens]
    offsets = [0]
    for word in words:
        offsets.append(offsets[-1] + len(word))
    likeliest = [
        {text.token_text(token): value for token, value in zip(row.token_ids, row.logprobs, strict=True)} or None
        for row in top
    ]
    return {
        "tokens": words,
        "token_logprobs": list(logprobs),
        "top_logprobs": likeliest or None,
        "text_offset": offsets[:-1],
    }
