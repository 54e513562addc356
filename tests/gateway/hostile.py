"""Random requests of every shape: any message of the contract, filled with values that are wrong in many ways."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

TEXTS = ("", "x", "..", "a" * 3000, "\0", "é漢", "tinker://a/weights/b", "cross_entropy", "weights", "target_tokens")
INTEGERS = (0, 1, -1, 2, 5, 99, 100, 1000, 2**31 - 1, -(2**31))
LARGE_INTEGERS = (*INTEGERS, 2**53, 2**63 - 1, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-300, float("nan"), float("inf"))
DEEPEST = 6


class Fuzzer:
    """Fills messages; the same seed gives the same requests."""

    def __init__(self, seed: int, known: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._texts = (*TEXTS, *known, *known, *known)

    def choose(self, options: Sequence[Any]) -> Any:
        return self._random.choice(options)

    def fill(self, message: Message, depth: int = 0) -> None:
        """Sets a random choice of fields to random values."""
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.3 or (field.message_type is not None and depth > DEEPEST):
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._fill_map(getattr(message, field.name), field.message_type.fields_by_name["value"], depth)
            elif field.is_repeated:
                self._fill_repeated(getattr(message, field.name), field, depth)
            elif field.message_type is not None:
                self.fill(getattr(message, field.name), depth + 1)
            else:
                setattr(message, field.name, self._value(field))

    def _fill_map(self, entries: Any, value: FieldDescriptor, depth: int) -> None:
        for _ in range(self._random.randint(0, 2)):
            name = self.choose(self._texts)
            if value.message_type is not None:
                self.fill(entries[name], depth + 1)
            else:
                entries[name] = self._value(value)

    def _fill_repeated(self, items: Any, field: FieldDescriptor, depth: int) -> None:
        for _ in range(self._random.randint(0, 4)):
            if field.message_type is not None:
                self.fill(items.add(), depth + 1)
            else:
                items.append(self._value(field))

    def _value(self, field: FieldDescriptor) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return self._random.randbytes(4 * self._random.randint(0, 8))
            case FieldDescriptor.CPPTYPE_STRING:
                return self.choose(self._texts)
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self.choose(FLOATS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._random.random() < 0.5
            case FieldDescriptor.CPPTYPE_ENUM:
                return self._random.randint(0, 5)
        number = self.choose(LARGE_INTEGERS if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else INTEGERS)
        return abs(number) if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32 else number
