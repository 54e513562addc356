"""Malformed bodies of every kind: a 4xx with a sentence, and the process stays healthy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from backports import zstd

from testing.platform import API_KEY, Platform
from tests.gateway.test_checkpoints import HOSTILE_PATHS
from tinker_proto.sdk.v1 import sdk_pb2

JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf"}
ZSTD = {**PROTOBUF, "content-encoding": "zstd"}
WHOLE = sdk_pb2.ForwardBackwardRequest(model_id="a:train:0", seq_id=1, loss_fn="cross_entropy").SerializeToString()
UNKNOWN = WHOLE + b"\xaa\x06\x03abc"
NESTED = WHOLE + b"\x1a\x07\xaa\x06\x04abcd"

BODIES: dict[str, tuple[str, dict[str, str], bytes, int]] = {
    "no JSON": ("create_session", JSON, b"{", 400),
    "an array": ("create_session", JSON, b"[]", 400),
    "an unknown field": ("create_session", JSON, b'{"tags": [], "nothing": 1}', 400),
    "a number as a text": ("get_info", JSON, b'{"model_id": 5}', 400),
    "a text as a number": ("optim_step", JSON, b'{"model_id": "a", "seq_id": "1"}', 400),
    "a seq_id out of range": ("optim_step", JSON, b'{"model_id": "a", "seq_id": 1e30}', 400),
    "no UTF-8": ("get_info", JSON, b'{"model_id": "\xff"}', 400),
    "a lone surrogate": ("get_info", JSON, b'{"model_id": "\\ud800"}', 400),
    "very deep": ("get_info", JSON, b'{"model_id": ' + b"[" * 100_000, 400),
    "JSON of another type": ("get_info", {"content-type": "text/plain"}, b"{}", 415),
    "protobuf as JSON": ("forward_backward", JSON, WHOLE, 415),
    "JSON as protobuf": ("get_info", PROTOBUF, WHOLE, 415),
    "a truncated protobuf": ("forward_backward", PROTOBUF, WHOLE[:-1], 400),
    "random bytes": ("forward_backward", PROTOBUF, bytes(range(256)), 400),
    "an unknown protobuf field": ("forward_backward", PROTOBUF, UNKNOWN, 400),
    "an unknown field inside": ("forward_backward", PROTOBUF, NESTED, 400),
    "an empty protobuf": ("forward_backward", PROTOBUF, b"", 404),
    "too long": ("forward_backward", PROTOBUF, bytes((1 << 20) + 1), 413),
    "an unknown encoding": ("forward_backward", {**PROTOBUF, "content-encoding": "br"}, WHOLE, 415),
    "no zstd": ("forward_backward", ZSTD, WHOLE, 400),
    "a truncated zstd": ("forward_backward", ZSTD, zstd.compress(WHOLE)[:-1], 400),
    "something behind the zstd": ("forward_backward", ZSTD, zstd.compress(WHOLE) + b"x", 400),
    "a zstd bomb": ("forward_backward", ZSTD, zstd.compress(bytes(1 << 28)), 413),
    "an operation's name that is none": ("retrieve_future", JSON, b'{"request_id": "x"}', 400),
    "an unknown route": ("nothing", JSON, b"{}", 404),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_a_malformed_body_is_refused_with_a_sentence(http: httpx.AsyncClient, kind: str) -> None:
    path, headers, content, status = BODIES[kind]
    answer = await http.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert (await http.get("healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "secret", ["tml-secret", ["tml-secret"], {"key": "tml-secret"}], ids=["text", "array", "object"]
)
async def test_a_value_of_the_wrong_type_is_described_and_not_printed(http: httpx.AsyncClient, secret: object) -> None:
    answer = await http.post("optim_step", json={"model_id": "a", "seq_id": secret, "tml-secret": secret})
    assert answer.status_code == 400
    kinds = {str: "a string", list: "an array", dict: "an object"}
    described = {"field": "seq_id", "description": f"must be a valid integer (got {kinds[type(secret)]})"}
    assert described in answer.json()["violations"]
    assert {"field": "tml-secret", "description": "not supported"} in answer.json()["violations"]
    assert answer.text.count("tml-secret") == 2, "the name of the unknown field alone: in detail and violations"


async def test_a_number_out_of_range_is_printed(http: httpx.AsyncClient) -> None:
    answer = await http.post("optim_step", json={"model_id": "a", "seq_id": -1})
    assert answer.json()["detail"] == "seq_id: must be greater than or equal to 0 (got -1)"


async def test_a_gigabyte_is_refused_before_it_is_read(http: httpx.AsyncClient) -> None:
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 1 << 30:
            read += 1 << 16
            yield bytes(1 << 16)

    announced = {**PROTOBUF, "content-length": str(1 << 30)}
    answer = await http.post("forward_backward", content=pieces(), headers=announced)
    assert answer.status_code == 413


async def test_a_gigabyte_is_refused_on_a_real_connection(sdk_platform: Platform) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sdk_platform.http_port)
    lines = ["POST /api/v1/forward_backward HTTP/1.1", "Host: gateway", f"X-API-Key: {API_KEY}"]
    lines += ["Content-Type: application/x-protobuf", f"Content-Length: {1 << 30}", "", "abc"]
    writer.write("\r\n".join(lines).encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 30)
    assert head.split()[1] == b"413"
    writer.close()
    await writer.wait_closed()
    answer = await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{sdk_platform.http_port}/healthz")
    assert answer.json() == {"status": "ok"}


async def test_a_body_without_a_length_is_read_to_the_limit_only(http: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(1 << 8):
            yield bytes(1 << 16)

    answer = await http.post("forward_backward", content=pieces(), headers=PROTOBUF)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"x-api-key": ""}, 401), ({"x-api-key": "tml-nobody's-key"}, 401), ({"x-api-key": "\xff"}, 401)],
)
async def test_a_missing_or_unknown_key_is_refused(
    http: httpx.AsyncClient, headers: dict[str, Any], status: int
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for path in ("client/config", "create_session", "retrieve_future", "asample", "telemetry"):
        answer = await http.post(path, content=json.dumps({}), headers=raw)
        assert answer.status_code == status, answer.text


async def test_a_bearer_token_is_a_key_too(http: httpx.AsyncClient) -> None:
    key = http.headers.pop("x-api-key")
    assert (await http.post("client/config", headers={"authorization": f"Bearer {key}"})).status_code == 200
    assert (await http.post("client/config", headers={"authorization": "Basic x"})).status_code == 401


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "offset=-1", "offset=99999999999", "access_scope=all", "project_id=p"]
)
async def test_bad_queries_are_refused_by_name(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.get(f"training_runs?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a%00b", "x" * 300, "%2Fetc%2Fpasswd", "a b", "%C3%A9", "a%5Cb"])
async def test_hostile_checkpoint_names_are_refused(http: httpx.AsyncClient, name: str) -> None:
    of_one = f"training_runs/a:train:0/checkpoints/weights/{name}"
    answers = [
        await http.delete(of_one),
        await http.post(f"{of_one}/publish"),
        await http.delete(f"{of_one}/publish"),
        await http.put(f"{of_one}/ttl", json={"ttl_seconds": 7200}),
        await http.get(f"{of_one}/external_weights_urls"),
        await http.get(f"{of_one}/archive"),
    ]
    for answer in answers:
        assert answer.status_code in (400, 404, 405), answer.text
        assert answer.json()["reason"] in ("BAD_TINKER_PATH", "NO_ROUTE"), "it is refused before anything is looked up"


async def test_hostile_paths_in_bodies_are_refused(http: httpx.AsyncClient) -> None:
    session = (await http.post("create_session", json={})).json()["session_id"]
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "weights_info": ("tinker_path", {}),
        "create_sampling_session": ("model_path", {"session_id": session, "sampling_session_seq_id": 0}),
        "load_weights": ("path", {"session_id": session, "model_seq_id": 0, "optimizer": True}),
    }
    for path in HOSTILE_PATHS:
        for route, (field, others) in bodies.items():
            answer = await http.post(route, json={**others, field: path})
            assert answer.status_code == 400, (route, path, answer.text)
            assert answer.json()["violations"], (route, path)


async def test_download_links_cannot_be_made_up(http: httpx.AsyncClient) -> None:
    for token in ("x", "x.y", "e30.e30", "W10.AA", "\u00e9.x", "..."):
        answer = await http.get(f"downloads/{token}/adapter_config.json")
        assert answer.status_code == 404, (token, answer.text)
