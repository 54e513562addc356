"""Protobuf's wire format, without schema: a message taken apart into fields and put together again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)
_WIDTHS = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Field:
    """One field of one message; a group's marks have no value."""

    number: int
    kind: int
    value: int | bytes = b""

    def packed(self) -> bytes:
        """Its bytes."""
        tag = varint(self.number << 3 | self.kind)
        if isinstance(self.value, int):
            return tag + varint(self.value)
        return tag + (varint(len(self.value)) if self.kind == BYTES else b"") + self.value


def varint(number: int) -> bytes:
    """A number >= 0 in as few bytes as there can be."""
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*packed, number))


def split(content: bytes) -> list[Field]:
    """The fields of a message.

    Raises:
        ValueError: it is none.
    """
    fields, at = [], 0
    while at < len(content):
        tag, at = _read_varint(content, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("field 0")
        value: int | bytes
        if kind == VARINT:
            value, at = _read_varint(content, at)
        else:
            if kind == BYTES:
                width, at = _read_varint(content, at)
            elif kind in _WIDTHS:
                width = _WIDTHS[kind]
            else:
                raise ValueError(f"wire type {kind}")
            if at + width > len(content):
                raise ValueError("cut off")
            value, at = content[at : at + width], at + width
        fields.append(Field(number, kind, value))
    return fields


def join(fields: Iterable[Field]) -> bytes:
    """A message of these fields."""
    return b"".join(field.packed() for field in fields)


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("cut off")
        number |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return number, at
    raise ValueError("a number without an end")
