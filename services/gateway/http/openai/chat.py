"""POST /v1/chat/completions: a conversation, put into tokens by the base model's chat template, goes on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

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
from services.gateway.http.openai.fields import Chat
from services.gateway.http.openai.generations import Generations
from services.gateway.http.openai.targets import Target, Targets
from services.gateway.http.openai.text import ModelText, utf8_bytes
from tinker_proto.v1 import sampling_pb2

ROLE = "assistant"


@dataclass(frozen=True)
class _Prepared:
    """A request in the platform's terms."""

    fields: Chat
    target: Target
    prompt: Sequence[int]
    request: sampling_pb2.SampleRequest

    def head(self, kind: str) -> dict[str, Any]:
        """What every answer and every event begins with."""
        return {
            "id": f"chatcmpl-{self.target.sampling_session_id}:{self.request.seq_id}",
            "object": kind,
            "created": int(time.time()),
            "model": self.fields.model,
        }


class ChatCompletions:
    """The endpoint."""

    def __init__(self, backend: Backend, targets: Targets, generations: Generations) -> None:
        self._backend = backend
        self._targets = targets
        self._generations = generations

    @takes(Chat)
    async def create(self, request: Request) -> Response:
        """Answers a conversation."""
        tenant = await self._backend.tenant(request)
        prepared = await self._prepare(tenant, await read_json(request, Chat))
        if prepared.fields.stream:
            return await event_stream(request, self._events(tenant, prepared))
        (response,) = await unless_disconnected(request, self._generations.run(tenant, [prepared.request]))
        choices = await self._backend.work.in_thread(tenant, generated_tokens(response), _choices, prepared, response)
        answer = {**prepared.head("chat.completion"), "choices": choices, "usage": usage([prepared.prompt], [response])}
        if prepared.fields.return_token_ids:
            answer["prompt_token_ids"] = list(prepared.prompt)
        return JSONResponse(answer)

    async def _prepare(self, tenant: str, fields: Chat) -> _Prepared:
        fields.check()
        target = await self._targets.of(tenant, fields.model)
        messages = [message.for_template() for message in fields.messages]
        options = fields.chat_template_kwargs or {}
        said = sum(len(text) for message in messages for text in message.values())
        more = len(to_json(options, inf_nan_mode="constants"))
        target.check_length("messages", said)
        target.check_length("chat_template_kwargs", more)
        prompt = await self._backend.work.in_thread(tenant, said + more, target.text.chat_tokens, messages, options)
        target.check_tokens("messages", prompt)
        request = sampling_pb2.SampleRequest(
            sampling_session_id=target.sampling_session_id,
            prompt=prompt_of(prompt),
            num_samples=fields.n,
            sampling_params=fields.sampling_params(fields.token_limit),
            topk_sample_logprobs=fields.top_logprobs_count,
            include_raw_logprobs=fields.wants_logprobs,
        )
        return _Prepared(fields, target, prompt, request)

    async def _events(self, tenant: str, prepared: _Prepared) -> AsyncGenerator[dict[str, Any], None]:
        fields, text = prepared.fields, prepared.target.text
        head, greeted, told = None, set(), False
        stream = self._generations.stream(tenant, [prepared.request])
        async with aclosing(growing(stream, text, [prepared.prompt], fields.stops)) as items:
            async for item in items:
                head = head or prepared.head("chat.completion.chunk")
                if isinstance(item, list):
                    if fields.stream_options is not None and fields.stream_options.include_usage:
                        yield {**head, "choices": [], "usage": usage([prepared.prompt], item)}
                    continue
                new, words, finish_reason = item
                if new.sequence not in greeted:
                    greeted.add(new.sequence)
                    delta = {"role": ROLE, "content": ""}
                    first = {"prompt_token_ids": list(prepared.prompt)} if fields.return_token_ids and not told else {}
                    told = True
                    yield {**head, **first, "choices": [{"index": new.sequence, "delta": delta, "finish_reason": None}]}
                choice: dict[str, Any] = {
                    "index": new.sequence,
                    "delta": {"content": words} if words else {},
                    "finish_reason": finish_reason,
                }
                if fields.wants_logprobs:
                    choice["logprobs"] = _logprobs(text, new.tokens, new.logprobs, [])
                if fields.return_token_ids:
                    choice["token_ids"] = list(new.tokens)
                yield {**head, "choices": [choice]}


def _choices(prepared: _Prepared, response: sampling_pb2.SampleResponse) -> list[dict[str, Any]]:
    return [_choice(prepared, index, sequence) for index, sequence in enumerate(response.sequences)]


def _choice(prepared: _Prepared, index: int, sequence: sampling_pb2.SampledSequence) -> dict[str, Any]:
    text, fields = prepared.target.text, prepared.fields
    logprobs = _logprobs(text, sequence.tokens, sequence.raw_logprobs, sequence.topk_logprobs)
    content = before_stop(text.added(prepared.prompt, sequence.tokens), fields.stops)
    choice = {
        "index": index,
        "message": {"role": ROLE, "content": content},
        "finish_reason": FINISH_REASONS[sequence.stop_reason],
        "logprobs": logprobs if fields.wants_logprobs else None,
    }
    return choice | ({"token_ids": list(sequence.tokens)} if fields.return_token_ids else {})


def _logprobs(
    text: ModelText,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    top: Sequence[sampling_pb2.TopkLogprobs],
) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        word = text.token_text(token)
        return {"token": word, "logprob": logprob, "bytes": utf8_bytes(word)}

    rows = list(top) or [sampling_pb2.TopkLogprobs() for _ in logprobs]
    return {
        "content": [
            {
                **entry(token, logprob),
                "top_logprobs": [entry(*pair) for pair in zip(row.token_ids, row.logprobs, strict=True)],
            }
            for token, logprob, row in zip(tokens, logprobs, rows, strict=False)
        ]
    }
