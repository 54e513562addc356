"""Fields that OpenAI's clients send: what changes nothing is taken, what would change the answer is refused by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from services.core.config import Settings
from services.core.errors import InvalidArgumentError
from services.core.queue.connection import RedisConnection
from services.gateway.http.app import http_app
from services.gateway.http.backend import Backend
from services.gateway.http.json_parsing import parse
from services.gateway.http.openai.answers import event_stream
from services.gateway.http.openai.fields import Chat, Completion
from services.gateway.stores import Stores

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}
NULLABLE = ("n", "stream", "stream_options", "stop", "seed", "max_tokens", "temperature", "top_p", "logprobs", "user")
CHANGES_NOTHING = [
    *((name, None) for name in NULLABLE),
    *((name, None) for name in ("tools", "functions", "function_call", "response_format", "metadata", "store")),
    *((name, 0.0) for name in ("presence_penalty", "frequency_penalty", "min_p", "min_tokens")),
    *((name, 1.0) for name in ("repetition_penalty", "length_penalty")),
    *((name, True) for name in ("skip_special_tokens", "spaces_between_special_tokens")),
    *((name, False) for name in ("ignore_eos", "use_beam_search", "include_stop_str_in_output", "store")),
    ("logit_bias", {}),
    ("service_tier", "auto"),
    ("service_tier", "default"),
    ("prompt_cache_key", "session-7"),
    ("safety_identifier", "user-7"),
    ("stream_options", {"include_usage": False}),
]
CHANGES_NOTHING_IN_CHATS = [
    ("tools", []),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("parallel_tool_calls", True),
    ("metadata", {}),
    ("modalities", ["text"]),
    ("response_format", {"type": "text"}),
    ("top_logprobs", 0),
]
CHANGES_NOTHING_IN_COMPLETIONS = [("suffix", None), ("suffix", ""), ("best_of", 1), ("best_of", None), ("echo", None)]
CHANGES_THE_ANSWER = [
    ("tools", [{"type": "function", "function": {"name": "look"}}]),
    ("tool_choice", "required"),
    ("store", True),
    ("metadata", {"run": "7"}),
    ("modalities", ["audio"]),
    ("response_format", {"type": "json_object"}),
    ("repetition_penalty", 1.1),
    ("presence_penalty", 0.5),
    ("min_p", 0.1),
    ("logit_bias", {"5": 1.0}),
    ("ignore_eos", True),
    ("service_tier", "priority"),
    ("reasoning_effort", "high"),
    ("n", 0),
]


def checked(fields: type[Chat] | type[Completion], body: dict[str, Any]) -> Chat | Completion:
    parsed, _ = parse(json.dumps(body).encode(), fields)
    parsed.check()
    return parsed


@pytest.mark.parametrize(("name", "value"), CHANGES_NOTHING + CHANGES_NOTHING_IN_CHATS)
def test_a_chat_takes_what_changes_nothing(name: str, value: Any) -> None:
    assert checked(Chat, {**CHAT, name: value}).sampling_params(None) == checked(Chat, CHAT).sampling_params(None)


@pytest.mark.parametrize(("name", "value"), CHANGES_NOTHING + CHANGES_NOTHING_IN_COMPLETIONS)
def test_a_completion_takes_what_changes_nothing(name: str, value: Any) -> None:
    made = checked(Completion, {**TEXT, name: value})
    assert (made.n, made.stream, made.stops) == (1, False, [])
    assert isinstance(made, Completion)
    assert (made.max_tokens, made.echo) == (16, False)


@pytest.mark.parametrize(("name", "value"), CHANGES_THE_ANSWER)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        checked(Chat, {**CHAT, name: value})


def test_a_replayed_turn_of_the_assistant_has_members_that_say_nothing() -> None:
    empty = {"refusal": None, "audio": None, "tool_calls": None, "function_call": None, "annotations": [], "name": None}
    made = checked(Chat, {**CHAT, "messages": [{"role": "assistant", "content": None, **empty}]})
    assert isinstance(made, Chat)
    assert made.messages[0].for_template() == {"role": "assistant", "content": ""}
    with pytest.raises(InvalidArgumentError, match=r"messages\.0\.tool_calls"):
        checked(Chat, {**CHAT, "messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]})


async def test_a_fault_within_a_stream_is_an_event_of_it() -> None:
    async def contents() -> AsyncGenerator[dict[str, Any], None]:
        yield {"first": 1}
        raise RuntimeError("a fault of ours")

    async def nothing() -> dict[str, Any]:
        return await asyncio.Future()

    request = Request({"type": "http", "path": "/v1/completions", "headers": []}, nothing)
    events = [str(event) async for event in (await event_stream(request, contents())).body_iterator]
    assert events[0] == 'data: {"first":1}\n\n'
    error = json.loads(events[1].removeprefix("data: "))["error"]
    assert "incident" in error["message"]
    assert "a fault of ours" not in events[1]
    assert len(events) == 2, "and nothing says that the answer is complete"


async def test_a_stream_that_has_nothing_to_say_says_so() -> None:
    ready, closed = asyncio.Event(), asyncio.Event()

    async def contents() -> AsyncGenerator[dict[str, Any], None]:
        try:
            await ready.wait()
            yield {"first": 1}
        finally:
            closed.set()

    async def nothing() -> dict[str, Any]:
        return await asyncio.Future()

    request = Request({"type": "http", "path": "/v1/completions", "headers": []}, nothing)
    events = aiter((await event_stream(request, contents(), silence_s=0.001)).body_iterator)
    assert [await anext(events) for _ in range(3)] == [": waiting\n\n"] * 3
    ready.set()
    rest = [event async for event in events]
    assert [event for event in rest if event != ": waiting\n\n"] == ['data: {"first":1}\n\n', "data: [DONE]\n\n"]
    assert closed.is_set()


@pytest.mark.parametrize(
    ("allowed", "origin", "answered"),
    [
        ("", "https://lab.example", None),
        ("https://lab.example,http://localhost:3000", "https://lab.example", "https://lab.example"),
        ("https://lab.example", "https://other.example", None),
        ("*", "https://any.example", "*"),
    ],
)
async def test_a_page_may_call_if_its_origin_is_allowed(
    stores: Stores, connection: RedisConnection, settings: Settings, allowed: str, origin: str, answered: str | None
) -> None:
    chosen = Settings.model_validate({**settings.model_dump(), "cors_origins": allowed})
    transport = httpx.ASGITransport(http_app(Backend.open(chosen, stores), connection))
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as browser:
        asked = await browser.options("/v1/chat/completions", headers=asks)
        called = await browser.get("/v1/models", headers={"origin": origin})
    assert asked.headers.get("access-control-allow-origin") == answered
    assert called.headers.get("access-control-allow-origin") == answered
    assert (asked.status_code == 200) == (answered is not None)
    if answered:
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
