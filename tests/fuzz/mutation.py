"""Valid requests made wrong: in their bytes, or in one field somewhere inside."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from tests.fuzz.wire import BYTES, END_GROUP, FIXED32, FIXED64, START_GROUP, VARINT, Field, join, split, varint

INTEGERS = (0, 1, 2, 100, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2**31)
REALS = (0.0, -0.0, -1.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    b"",
    b"\xff\xfe",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\0",
    b"..",
    b"tinker://",
    b"a" * 5000,
    b"%s{}" * 9,
    b"\x80" * 64,
)
KINDS = (VARINT, FIXED64, BYTES, FIXED32)
MANY = 3000
DEPTHS = (3, 90, 300)
"""The last is deeper than what is parsed."""


class Mutator:
    """Makes requests wrong; the same seed makes the same of the same."""

    def __init__(self, seed: int, known: Sequence[str]) -> None:
        """Args: known: names that mean something on this platform."""
        self._random = random.Random(seed)
        self._known = [name.encode() for name in known]

    def mutated(self, content: bytes, another: bytes) -> bytes:
        """A request with one or two things wrong; `another` is one of the same method."""
        for _ in range(self._random.choice((1, 1, 1, 2))):
            in_bytes = self._random.random() < 0.1
            content = self._in_bytes(content, another) if in_bytes else self._in_a_field(content)
        return content

    def _in_bytes(self, content: bytes, another: bytes) -> bytes:
        """Wrong wherever it happens."""
        at = self._random.randint(0, len(content))
        until = self._random.randint(at, len(content))
        noise = self._random.randbytes(self._random.randint(1, 16))
        choices: list[Callable[[], bytes]] = [
            lambda: self._flipped(content),
            lambda: content[:at],
            lambda: content[:at] + content[until:],
            lambda: content[:at] + noise + content[at:],
            lambda: content[:at] + content[at:until] * 2 + content[until:],
            lambda: content + another,
            lambda: noise,
        ]
        return self._random.choice(choices)()

    def _flipped(self, content: bytes) -> bytes:
        flipped = bytearray(content)
        for _ in range(self._random.randint(1, 8) if content else 0):
            flipped[self._random.randrange(len(flipped))] ^= 1 << self._random.randrange(8)
        return bytes(flipped)

    def _in_a_field(self, content: bytes) -> bytes:
        """Wrong in one field of the message, or of one inside."""
        try:
            fields = split(content)
        except ValueError:
            return self._flipped(content)
        if not fields:
            return self._added()
        place = self._random.randrange(len(fields))
        field = fields[place]
        if self._random.random() < 0.85 and _is_message(field):
            changed = Field(field.number, BYTES, self._in_a_field(field.value)).packed()
        else:
            changed = self._changed(field)
        return join(fields[:place]) + changed + join(fields[place + 1 :])

    def _changed(self, field: Field) -> bytes:
        """What stands in a field's place."""
        packed, number = field.packed(), field.number
        choices: list[Callable[[], bytes]] = [
            *[lambda: Field(number, field.kind, self._value(field.kind)).packed()] * 5,
            *[lambda: packed + self._added()] * 3,
            lambda: b"",
            lambda: packed * 2,
            lambda: packed * max(2, min(MANY, (1 << 20) // max(1, len(packed)))),
            lambda: self._added(number),
            lambda: self._nested(field),
            lambda: self._grouped(number),
            lambda: varint(number << 3 | BYTES) + varint(self._random.choice(INTEGERS)) + b"x",
            lambda: varint(number << 3) + b"\xff" * self._random.choice((9, 10, 20)) + b"\x01",
        ]
        return self._random.choice(choices)()

    def _nested(self, field: Field) -> bytes:
        packed = field.packed()
        for _ in range(self._random.choice(DEPTHS)):
            packed = Field(field.number, BYTES, packed).packed()
        return packed

    def _grouped(self, number: int) -> bytes:
        """Groups in each other, which may have no end."""
        depth = self._random.choice(DEPTHS)
        ends = [Field(number, END_GROUP)] * self._random.choice((0, depth, depth))
        return join([Field(number, START_GROUP)] * depth + ends)

    def _added(self, number: int | None = None) -> bytes:
        """A field of any type, also where another is right."""
        kind = self._random.choice(KINDS)
        unknown = self._random.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 100, 2**29 - 1))
        return Field(number or unknown, kind, self._value(kind)).packed()

    def _value(self, kind: int) -> int | bytes:
        match kind:
            case _ if kind == VARINT:
                return self._random.choice(INTEGERS)
            case _ if kind == FIXED64:
                return struct.pack("<d", self._random.choice(REALS))
            case _ if kind == FIXED32:
                return self._random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\1\0\0\0"))
        return self._random.choice(self._known if self._random.random() < 0.7 else TEXTS)


def _is_message(field: Field) -> bool:
    """Whether a field may have another message in it."""
    try:
        return field.kind == BYTES and bool(split(field.value))
    except ValueError:
        return False
