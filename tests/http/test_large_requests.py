"""Requests of many megabytes: refused or carried out while other tenants' calls and health checks are answered."""

from __future__ import annotations

import asyncio
import json
import threading
from types import ModuleType
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models

from services.gateway import submission
from services.gateway.http import json_parsing
from services.gateway.http.body import PARSED_HERE_BYTES
from services.gateway.http.openai.fields import Completion
from services.gateway.http.openai.text import ModelText
from services.gateway.http.sdk import training
from services.gateway.stores import Stores
from services.gateway.work import SMALL, Work
from tests.gateway.caller import BASE
from tests.http.test_futures import PROTOBUF, create, loss, sample, sampling_session, submit
from tinker_proto.sdk.v1 import sdk_pb2


def slow_body() -> bytes:
    """Half a million objects of the wrong kind, which make a million faults."""
    chunks = b",".join([b'{"tokens":5}'] * (1 << 19))
    return b'{"sampling_session_id":"x","seq_id":0,"sampling_params":{},"prompt":{"chunks":[' + chunks + b"]}}"


async def test_others_are_answered_while_a_tenants_large_bodies_are_parsed(
    http: httpx.AsyncClient, stores: Stores
) -> None:
    key, _ = await stores.api_keys.create("mallory")
    run = await create(http)
    content, headers = slow_body(), {"content-type": "application/json", "x-api-key": key}
    large = [asyncio.create_task(http.post("asample", content=content, headers=headers)) for _ in range(2)]
    answered = 0
    while not any(task.done() for task in large):
        assert (await http.get("healthz")).status_code == 200
        assert (await submit(http, loss(run, 1))).status_code == 200
        answered += 1
    assert answered >= 10
    for task in large:
        answer = await task
        assert (answer.status_code, answer.json()["reason"]) == (400, "BAD_JSON")


async def test_a_large_body_means_what_a_small_one_means(http: httpx.AsyncClient) -> None:
    chat = {"model": "nobody/lm", "messages": [{"role": "user", "content": "x" * PARSED_HERE_BYTES}], "novelty": None}
    assert (await http.post("http://gateway/v1/chat/completions", json=chat)).status_code == 404
    refused = await http.post("http://gateway/v1/chat/completions", json={**chat, "novelty": 1, "n": "1"})
    assert refused.status_code == 400
    assert "novelty: not supported" in refused.json()["error"]["message"]
    assert "n: must be a valid integer" in refused.json()["error"]["message"]


def test_the_number_of_objects_is_limited_and_that_of_tokens_is_not() -> None:
    most = json_parsing.MOST_CONTAINERS
    tokens = json.dumps({"model": "m", "prompt": list(range(2 * most))}).encode()
    assert len(json_parsing.parse_large(tokens, Completion)[0].prompts[0]) == 2 * most
    lists = json.dumps({"model": "m", "prompt": [[1]] * (most + 1)}).encode()
    with pytest.raises(json_parsing.InvalidArgumentError, match="body: must be at most 100000 objects and arrays"):
        json_parsing.parse_large(lists, Completion)


def byte_tokenizer() -> ModelText:
    """A byte-pair tokenizer that takes long for one long word."""
    merges = [("a" * length, "a" * length) for length in (1, 2, 4, 8)]
    vocabulary = {"a" * length: i for i, length in enumerate((1, 2, 4, 8, 16))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    return ModelText({"tokenizer.json": tokenizer.to_str().encode()})


async def test_the_loop_goes_on_while_a_text_is_tokenized() -> None:
    text = byte_tokenizer()
    assert text.longest_token == 16
    tokenizing = asyncio.create_task(Work().in_thread("alice", SMALL + 1, text.tokens, "a" * (1 << 20)))
    turns = 0
    while not tokenizing.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(await tokenizing) == (1 << 20) // 16
    assert turns > 1000


@pytest.mark.parametrize("step", [(training, "fill_loss"), (submission, "check_run_request")], ids=lambda step: step[1])
async def test_others_are_answered_while_a_tenants_many_data_are_worked_on(
    http: httpx.AsyncClient, stores: Stores, monkeypatch: pytest.MonkeyPatch, step: tuple[ModuleType, str]
) -> None:
    module, name = step
    real, answered = getattr(module, name), threading.Event()

    def slow(request: Any, *others: Any) -> None:
        if len(request.data) != 1 and len(getattr(others[0], "data", [])) != 1:
            assert answered.wait(10), "the loop stands still"
        real(request, *others)

    monkeypatch.setattr(module, name, slow)
    key, _ = await stores.api_keys.create("mallory")
    theirs = {"x-api-key": key}
    session = (await http.post("create_session", json={}, headers=theirs)).json()["session_id"]
    fields = {"session_id": session, "model_seq_id": 0, "base_model": BASE, "lora_config": {"rank": 4}}
    run = (await http.post("create_model", json=fields, headers=theirs)).json()["model_id"]
    request = sdk_pb2.ForwardBackwardRequest.FromString(loss(run, 1))
    request.data.extend([request.data[0]] * ((1 << 19) // request.data[0].ByteSize()))
    content, headers = request.SerializeToString(), {**theirs, **PROTOBUF}
    large = asyncio.create_task(http.post("forward_backward", content=content, headers=headers))
    ours = await create(http)
    for seq_id in (1, 2):
        assert (await submit(http, loss(ours, seq_id))).status_code == 200
        assert (await http.get("healthz")).status_code == 200
    answered.set()
    assert (await large).json()["request_id"] == f"{run}:1"


async def test_more_chunks_than_tokens_fit_the_context_are_refused(http: httpx.AsyncClient) -> None:
    sampling = await sampling_session(http)
    chunks = [{"tokens": [5]}] + [{"tokens": []}] * 32
    answer = await sample(http, sampling, 0, prompt={"chunks": chunks})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("prompt.chunks: must be at most 32 chunks")
