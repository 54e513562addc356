"""Calls on a training run that HTTP refuses take their place in the run's log: the next call goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from backports import zstd

from services.gateway.http.sdk.positions import position_in
from services.gateway.stores import Stores
from tests.http.test_futures import ADAM, PROTOBUF, create, logged, loss, submit
from tinker_proto.sdk.v1 import sdk_pb2

LIMIT = 1 << 20
"""Of a message here; JSON has a limit of its own."""

JSON_LIMIT = 16 << 20


async def goes_on(http: httpx.AsyncClient, stores: Stores, run: str, answer: httpx.Response) -> str:
    """The error of operation 1, which was refused with `answer`; operation 2 is accepted and in the log."""
    step = await http.post("optim_step", json={"model_id": run, "seq_id": 2, "adam_params": ADAM})
    assert step.status_code == 200, step.text
    assert await logged(stores, run) == [0, 1, 2]
    result = (await http.post("retrieve_future", json={"request_id": f"{run}:1"})).json()
    assert result["category"] == "user"
    assert result["error"] == answer.json()["detail"]
    return str(result["error"])


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("save_weights", {"path": "a", "ttl_seconds": 10**30}, "ttl_seconds"),
        ("save_weights", {"path": None}, "path"),
        ("save_weights", {"path": "a", "overwrite": "yes"}, "overwrite"),
        ("save_weights", {"path": "a", "user_metadata": {"a": 1}}, "user_metadata.a"),
        ("save_weights", {"path": "a", "novelty": 1}, "novelty"),
        ("save_weights_external", {"path": ""}, "path"),
        ("save_weights_for_sampler", {"path": "a", "kind": "sometimes"}, "kind"),
        ("save_weights_for_sampler", {"sampling_session_seq_id": -1}, "sampling_session_seq_id"),
        ("optim_step", {"adam_params": {**ADAM, "momentum": 0.9}}, "adam_params.momentum"),
        ("load_weights", {"path": 5}, "path"),
        ("load_weights", {"path": "\ud800"}, ""),
    ],
)
async def test_a_refused_call_takes_its_place(
    http: httpx.AsyncClient, stores: Stores, path: str, fields: dict[str, Any], named: str
) -> None:
    run = await create(http)
    content = json.dumps({"model_id": run, **fields, "seq_id": 1}).encode()
    answer = await http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert named in await goes_on(http, stores, run, answer)
    again = await http.post(path, content=content, headers={"content-type": "application/json"})
    assert (again.status_code, again.json()) == (400, answer.json()), "a resend is refused in the same way"


async def pieces(content: bytes, each: int) -> AsyncIterator[bytes]:
    for at in range(0, len(content), each):
        yield content[at : at + each]


def long_loss(run: str) -> bytes:
    return loss(run, 1) + sdk_pb2.ForwardBackwardRequest(loss_fn="x" * LIMIT).SerializeToString()


@pytest.mark.parametrize("each", [1, 40, 1 << 22], ids=["byte by byte", "in pieces", "whole"])
@pytest.mark.parametrize("encoding", ["identity", "zstd"])
@pytest.mark.parametrize("announced", [True, False], ids=["of a length", "of unknown length"])
async def test_a_body_over_the_limit_takes_its_place(
    http: httpx.AsyncClient, stores: Stores, announced: bool, encoding: str, each: int
) -> None:
    run = await create(http)
    content = long_loss(run)
    headers = {**PROTOBUF, "content-encoding": encoding}
    if encoding == "zstd":
        content = zstd.compress(content)
    if each == 1 and (encoding == "identity" and not announced):
        each = 1000  # a million pieces take long
    if announced:
        headers["content-length"] = str(max(len(content), LIMIT + 1))
    answer = await http.post("forward_backward", content=pieces(content, each), headers=headers)
    assert answer.status_code == 413
    await goes_on(http, stores, run, answer)


async def test_long_json_takes_its_place_if_the_position_comes_first(http: httpx.AsyncClient, stores: Stores) -> None:
    run = await create(http)
    fields = {"model_id": run, "seq_id": 1, "path": "a", "user_metadata": {"a": "x" * JSON_LIMIT}}
    answer = await http.post("save_weights", json=fields)
    assert answer.status_code == 413
    await goes_on(http, stores, run, answer)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-encoding": "br"}, 415),
    ],
)
async def test_a_body_of_another_kind_takes_its_place(
    http: httpx.AsyncClient, stores: Stores, changes: dict[str, str], status: int
) -> None:
    run = await create(http)
    answer = await http.post("forward_backward", content=loss(run, 1), headers={**PROTOBUF, **changes})
    assert answer.status_code == status
    await goes_on(http, stores, run, answer)


@pytest.mark.parametrize("end", [b"more", b""], ids=["bytes after it", "cut"])
async def test_malformed_zstd_takes_its_place(http: httpx.AsyncClient, stores: Stores, end: bytes) -> None:
    run = await create(http)
    frame = zstd.compress(loss(run, 1) + bytes(1 << 18))  # of several blocks: the first one is whole
    content = frame + end if end else frame[:-1]
    answer = await http.post("forward_backward", content=content, headers={**PROTOBUF, "content-encoding": "zstd"})
    assert answer.json()["reason"] == "BAD_ZSTD"
    await goes_on(http, stores, run, answer)


async def test_malformed_protobuf_takes_its_place(http: httpx.AsyncClient, stores: Stores) -> None:
    run = await create(http)
    answer = await submit(http, loss(run, 1) + b"\xaa\x06\x03abc")
    assert answer.json()["reason"] == "UNKNOWN_FIELD"
    await goes_on(http, stores, run, answer)


async def test_a_refused_call_takes_no_place_in_another_tenants_run(http: httpx.AsyncClient, stores: Stores) -> None:
    run = await create(http)
    key, _ = await stores.api_keys.create("mallory")
    fields = {"model_id": run, "seq_id": 1, "path": 5}
    answer = await http.post("save_weights", json=fields, headers={"x-api-key": key})
    assert answer.status_code == 400
    assert await logged(stores, run) == [0]
    assert (await submit(http, loss(run, 1))).status_code == 200


async def test_an_operation_that_is_there_is_not_refused_by_a_later_call(
    http: httpx.AsyncClient, stores: Stores
) -> None:
    run = await create(http)
    await submit(http, loss(run, 1))
    assert (await http.post("save_weights", json={"model_id": run, "seq_id": 1, "path": 5})).status_code == 400
    assert (await submit(http, loss(run, 1))).json() == {"request_id": f"{run}:1", "model_id": run}


@pytest.mark.parametrize(
    ("start", "position"),
    [
        (b'{"model_id": "a:train:0", "seq_id": 7, "path": "', ("a:train:0", 7)),
        (b'\n {"path":{"seq_id":1},"seq_id":7 ,"model_id":"a"}', ("a", 7)),
        (b'{"model_id":"\\u00e9","seq_id":1}', ("\u00e9", 1)),
        (b'{"model_id":"a","seq_id":7', None),
        (b'{"model_id":"a","seq_id":7}', ("a", 7)),
        (b'{"model_id":"a","seq_id":7.0}', None),
        (b'{"model_id":"a","seq_id":true}', None),
        (b'{"model_id":"a","seq_id":0}', None),
        (b'{"model_id":"a","seq_id":1' + b"0" * 5000 + b"}", None),
        (b'{"user_metadata":{"model_id":"a","seq_id":7}}', None),
        (b'{"x":' + b"[" * 100_000, None),
        (b'"model_id"', None),
        (b"\x0a\x01a\x10\x07\x1a", ("a", 7)),
        (b"\x0a\x01a\x10\x87\x01", ("a", 135)),
        (b"\x0a\x01a\x10\x87", None),
        (b"\x0a\x01\xff\x10\x07", None),
        (b"\x10\x07\x0a\x01a", None),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"\x0a{\x22", None),
        (b"", None),
    ],
)
def test_a_position_is_read_from_what_is_there(start: bytes, position: tuple[str, int] | None) -> None:
    assert position_in(start) == position
