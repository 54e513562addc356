"""Positions of calls on training runs, read from the bytes of a body that is malformed, too long or not all there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from services.core.names import MAX_SEQ_ID

Position = tuple[str, int]
"""A run and a seq_id."""

_SPACE = " \t\r\n"
_VARINT, _BYTES = 0, 2
_LONGEST_NUMBER = 20
_DECODER = json.JSONDecoder(
    strict=False, parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_NUMBER else None
)


def position_in(start: bytes) -> Position | None:
    """The run and the seq_id that a JSON object or a ForwardBackwardRequest begins with; None if not both are there."""
    fields = dict(_members(start)) if start.lstrip().startswith(b"{") else dict(_first_fields(start))
    run, seq_id = fields.get("model_id"), fields.get("seq_id")
    if not isinstance(run, str) or type(seq_id) is not int or not 1 <= seq_id <= MAX_SEQ_ID:
        return None
    return run, seq_id


def _members(start: bytes) -> Iterator[tuple[str, Any]]:
    """Members of a JSON object, up to the first that is malformed or cut off."""
    text = start.decode(errors="replace").lstrip(_SPACE).removeprefix("{")
    at = 0
    try:
        while True:
            at = _skip(text, at)
            name, at = _DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if text[at] != ":" or not isinstance(name, str):
                return
            value, at = _DECODER.raw_decode(text, _skip(text, at + 1))
            at = _skip(text, at)
            following = text[at]  # a number that the end cuts off is not taken for a whole one
            yield name, value
            if following != ",":
                return
            at += 1
    except (ValueError, IndexError, RecursionError):
        return


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _first_fields(start: bytes) -> Iterator[tuple[str, Any]]:
    """model_id and seq_id, fields 1 and 2, which a protobuf message begins with."""
    try:
        length, at = _varint(start, _tag(start, 0, 1, _BYTES))
        yield "model_id", start[at : at + length].decode()
        seq_id, _ = _varint(start, _tag(start, at + length, 2, _VARINT))
        yield "seq_id", seq_id
    except (ValueError, IndexError):
        return


def _tag(start: bytes, at: int, number: int, kind: int) -> int:
    if start[at] != number << 3 | kind:
        raise ValueError("another field")
    return at + 1


def _varint(start: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (start[at] & 0x7F) << shift
        at += 1
        if start[at - 1] < 0x80:
            return value, at
    raise ValueError("too long")
