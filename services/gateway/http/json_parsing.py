"""JSON bodies as what is expected of them, and one sentence about each fault. Needs nothing of the gateway's.

A large body is parsed in a process beside the gateway: the parser holds Python's lock for seconds if the body is made
to be slow. What comes back must be cheap to take over, so the number of objects and arrays in it is limited.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from services.core.errors import InvalidArgumentError, Violation, broken_rule
from services.gateway.http.empty_fields import is_ignored, parse_without_empty_fields

MOST_CONTAINERS = 100_000
"""Objects and arrays in a large body; ten times the turns of a conversation that fills a context of 100,000 tokens."""

MOST_VIOLATIONS = 10

NULL_NUMBER = "null, which is how NaN and infinity are written in JSON"
"""What is said of a number that is null: pydantic, and with it the SDK, writes these two so."""

_KINDS: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}

JsonT = TypeVar("JsonT", bound=BaseModel)


def parse(content: bytes, fields: type[JsonT]) -> tuple[JsonT, int]:
    """Reads a JSON object; unknown fields with an empty value are left out and counted.

    Raises:
        InvalidArgumentError: it is no JSON, or has other fields; names them.
    """
    try:
        return parse_without_empty_fields(content, fields)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = [fault for fault in found if not is_ignored(fault)][:MOST_VIOLATIONS] or found[:MOST_VIOLATIONS]
        violations = tuple(Violation(".".join(map(str, fault["loc"]))[:200], _description(fault)) for fault in faults)
        message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
        raise InvalidArgumentError(message, reason="BAD_JSON", violations=violations) from None


def parse_large(content: bytes, fields: type[JsonT]) -> tuple[JsonT, int]:
    """As `parse`; raises InvalidArgumentError for too many objects and arrays too."""
    _check_containers(content)
    return parse(content, fields)


def _check_containers(content: bytes) -> None:
    waiting: list[Any] = []
    try:
        waiting.append([from_json(content)])
    except ValueError:
        return  # the parser says what is wrong
    count = 0
    while waiting:
        container = waiting.pop()
        values = container.values() if isinstance(container, dict) else container
        inner = [value for value in values if isinstance(value, dict | list)]
        count += len(inner)
        if count > MOST_CONTAINERS:
            rule = broken_rule(f"at most {MOST_CONTAINERS} objects and arrays", "more")
            raise InvalidArgumentError(f"body: {rule}", reason="BAD_JSON")
        waiting += inner


def _description(fault: ErrorDetails) -> str:
    """The description of what pydantic found. Of texts and objects the kind alone: they may hold a secret."""
    if fault["type"] == "missing":
        return "required"
    if fault["type"] == "extra_forbidden":
        return "not supported"
    value: Any = fault["input"]
    rule = fault["msg"].removeprefix("Input should be ")
    if rule == fault["msg"]:
        return rule
    if value is None and fault["type"] == "float_type":
        return broken_rule(rule, NULL_NUMBER)
    return broken_rule(rule, json.dumps(value) if isinstance(value, int | float | None) else _KINDS[type(value)])
