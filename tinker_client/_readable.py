"""Readable reprs of values in a notebook or a debugger: long lists are shortened, bytes counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ITEMS = 8
"""Longer lists show so many of their items, and how many they have."""


class Readable:
    """A dataclass whose repr names its fields and shortens long ones; use it with `@dataclass(repr=False)`."""

    def __repr__(self) -> str:
        fields = (field for field in dataclasses.fields(self) if field.repr)  # type: ignore[arg-type]
        values = (f"{field.name}={shortened(getattr(self, field.name))}" for field in fields)
        return f"{type(self).__name__}({', '.join(values)})"


def shortened(value: Any) -> str:
    """The repr of a value with long lists and dicts shortened, also inside it."""
    match value:
        case str():
            return repr(value)
        case bytes():
            return f"<{len(value):,} bytes>"
        case Mapping():
            return _joined([f"{key!r}: {shortened(item)}" for key, item in value.items()], len(value), "{}")
        case Sequence():
            shown = [shortened(item) for item in value[:MOST_ITEMS]]
            return _joined(shown, len(value), "()" if isinstance(value, tuple) else "[]")
        case _:
            return repr(value)


def _joined(shown: Sequence[str], count: int, brackets: str) -> str:
    rest = f", … {count:,} in all" if count > len(shown) else ""
    return f"{brackets[0]}{', '.join(shown)}{rest}{brackets[1]}"
