"""Unknown fields of JSON bodies: ignored and counted while they say nothing, refused by name when they do."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import httpx
import pytest
from prometheus_client import REGISTRY
from pydantic import Field

from services.core.errors import InvalidArgumentError
from services.gateway.http.body import Fields
from services.gateway.http.json_parsing import JsonT, parse
from services.gateway.http.openai.fields import Chat, Completion
from services.gateway.http.sdk.sampling import Sample

EMPTY = ["null", "false", "0", "0.0", '""', "[]", "{}"]
TELLING = ["true", "1", "-0.5", '" "', "[null]", '{"a": null}', "NaN"]


class Circle(Fields):
    """A kind of object."""

    type: Literal["circle"]
    radius: int = 0


class Square(Fields):
    """A kind of object with a field of its own."""

    type: Literal["square"]
    side: int = 0
    rounded: bool = True


class Group(Fields):
    """An object with others in it, and no kind that is said."""

    members: list[Annotated[Circle | Square, Field(discriminator="type")]]


class Drawing(Fields):
    """A body with objects of several kinds."""

    title: str
    parts: list[Circle | Square | Group]


def ignored(front: str) -> float:
    return REGISTRY.get_sample_value("tinker_ignored_fields_total", {"front": front}) or 0.0


def parsed(content: bytes, fields: type[JsonT]) -> JsonT:
    return parse(content, fields)[0]


def sample(**others: str) -> bytes:
    """A body with further fields, each as JSON, in all of its objects."""
    more = "".join(f', "{name}": {value}' for name, value in others.items())
    prompt = f'{{"chunks": [{{"tokens": [1, 2], "type": "encoded_text"{more}}}]{more}}}'
    params = f'{{"max_tokens": 4{more}}}'
    return (
        f'{{"sampling_session_id": "s", "seq_id": 3, "sampling_params": {params}, "prompt": {prompt}{more}}}'.encode()
    )


@pytest.mark.parametrize("value", EMPTY)
def test_an_empty_unknown_field_is_ignored_and_counted_at_every_depth(value: str) -> None:
    assert parse(sample(novelty=value), Sample) == (parsed(sample(), Sample), 4)


@pytest.mark.parametrize("value", TELLING)
def test_an_unknown_field_that_says_something_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        parsed(sample(novelty=value, quiet="null"), Sample)
    violations = {violation.field: violation.description for violation in refusal.value.violations}
    assert violations["novelty"] == "not supported"
    assert not any("quiet" in field for field in violations)


@pytest.mark.parametrize(
    "body",
    [
        {"title": "t", "parts": [{"type": "circle", "side": 0, "rounded": False}]},
        {"title": "t", "parts": [{"members": [{"type": "circle", "x": None}], "y": []}, {"type": "circle", "z": 0}]},
        {"title": "t", "u": None, "parts": [{"members": [{"type": "circle", "radius": 0}], "type": ""}]},
    ],
    ids=["fields of another kind", "inside each other", "a field that says the kind"],
)
def test_what_is_left_out_does_not_change_which_kind_of_object_it_is(body: dict[str, Any]) -> None:
    (first, *_) = parsed(json.dumps(body).encode(), Drawing).parts
    assert first in (Circle(type="circle"), Group(members=[Circle(type="circle")]))


def test_a_known_field_of_the_right_kind_is_kept() -> None:
    body = {"title": "t", "novelty": None, "parts": [{"type": "square", "side": 0, "rounded": False, "x": None}]}
    drawing = parsed(json.dumps(body).encode(), Drawing)
    assert drawing.parts == [Square(type="square", rounded=False)]


def test_a_body_with_another_fault_is_refused_for_that_fault_alone() -> None:
    body = {"title": 5, "novelty": None, "parts": [{"type": "circle", "radius": "1", "x": None}]}
    with pytest.raises(InvalidArgumentError) as refusal:
        parsed(json.dumps(body).encode(), Drawing)
    assert "title: must be a valid string (got 5)" in refusal.value.message
    assert not {"novelty", "parts.0.Circle.x"} & {violation.field for violation in refusal.value.violations}


def test_values_come_through_unchanged() -> None:
    options = {"big": 10**4000, "text": "\u2028\x00é", "float": 0.1 + 0.2, "tiny": 5e-324, "none": None, "zero": 0}
    message = {"role": "user", "content": "x"}
    body = {"model": "m", "messages": [message], "chat_template_kwargs": options, "new": []}
    assert parsed(json.dumps(body).encode(), Chat).chat_template_kwargs == options


def test_an_endless_number_of_empty_fields_is_refused() -> None:
    fields = ", ".join(f'"x{i}": null' for i in range(10_001))
    with pytest.raises(InvalidArgumentError, match="not supported"):
        parsed(f'{{"model": "m", "prompt": "x", {fields}}}'.encode(), Completion)


async def test_the_optimizer_may_have_empty_fields_too(http: httpx.AsyncClient) -> None:
    body = {"session_id": "a", "model_seq_id": 0, "base_model": "tiny/lm", "lora_config": {"rank": 4}}
    before = ignored("sdk")
    empty = await http.post("create_model", json={**body, "optimizer_config": {"type": "adamw", "schedule": None}})
    assert empty.status_code == 404, "the session does not exist"
    assert ignored("sdk") == before + 1
    other = await http.post("create_model", json={**body, "optimizer_config": {"type": "adamw", "schedule": "cosine"}})
    assert (other.status_code, other.json()["violations"][0]["field"]) == (400, "optimizer_config")


async def test_both_fronts_ignore_and_say_so(http: httpx.AsyncClient) -> None:
    before = ignored("sdk")
    assert (await http.post("create_session", json={"tags": [], "novelty": False})).status_code == 200
    assert ignored("sdk") == before + 1
    chat = {"model": "nobody/lm", "messages": [{"role": "user", "content": "x"}], "tools": [], "novelty": {}}
    before = ignored("openai")
    answer = await http.post("http://gateway/v1/chat/completions", json=chat)
    assert answer.status_code == 404, answer.text
    assert ignored("openai") > before
    schemas = (await http.get("http://gateway/openapi.json")).json()["components"]["schemas"]
    assert schemas["Chat"]["additionalProperties"] == {"enum": [None, False, 0, "", [], {}]}
    assert schemas["OtherOptimizer"]["additionalProperties"] is True
