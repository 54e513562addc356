"""Output of commands: tables for people, one JSON value for programs.

A table is as wide as its content, so that a path can be copied whole; its last column may run over the edge of the
terminal. Text that other people wrote (labels, names) is shown without its control characters. In JSON, times are
RFC 3339 in UTC and a number that is not finite is null.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_client.types import LoraConfig

NOTHING = "-"
"""Placeholder of an absent value."""

_GAP = "  "
_AGES = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def print_json(value: object) -> None:
    """Prints one JSON value on standard output."""
    print(json.dumps(as_json(value), indent=2, ensure_ascii=False, allow_nan=False))


def as_json(value: Any) -> Any:
    """A value of the client's types as JSON, under the names of its fields."""
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(item) for item in value]
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, to_stderr: bool = False) -> None:
    """Prints rows under a bold line of column names."""
    from rich.cells import cell_len

    shown = [[printable(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*shown, strict=True)]
    for index, row in enumerate(shown):
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        print_line(_GAP.join(padded).rstrip(), style="bold" if index == 0 else "", to_stderr=to_stderr)


def print_properties(title: str, properties: Mapping[str, str]) -> None:
    """Prints a bold title, and one property a line."""
    width = max(map(len, properties))
    print_line(title, style="bold")
    for name, value in properties.items():
        print_line(f"{_GAP}{name:<{width}}{_GAP}{printable(value)}")


def print_line(text: str, *, style: str = "", to_stderr: bool = False) -> None:
    """Prints a line; the style applies only on a terminal."""
    stream = sys.stderr if to_stderr else sys.stdout
    if not style:
        print(text, file=stream)
        return
    from rich.console import Console
    from rich.text import Text

    Console(file=stream, highlight=False).print(Text(text, style), soft_wrap=True)


def printable(text: str) -> str:
    """The text without control characters."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def size(size_bytes: int) -> str:
    """A number of bytes in a readable unit: "1.2 MB"."""
    from rich.filesize import decimal

    return decimal(size_bytes)


def moment(time: datetime, now: datetime) -> str:
    """A point in time and its distance: "2026-01-31 12:00:00 UTC (2 h ago)"."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({age(time, now)})"


def age(time: datetime, now: datetime) -> str:
    """The distance of a time: "2 h ago", "in 3 d"."""
    seconds = (now - time).total_seconds()
    ahead, seconds = seconds < 0, abs(seconds)
    if seconds < 1:
        return "now"
    unit, length = next((unit, length) for unit, length in _AGES if seconds >= length)
    span = f"{int(seconds / length)} {unit}"
    return f"in {span}" if ahead else f"{span} ago"


def labels(user_metadata: Mapping[str, str]) -> str:
    """Labels on one line."""
    return ", ".join(f"{name}={value}" for name, value in sorted(user_metadata.items())) or NOTHING


def adapter(config: LoraConfig) -> str:
    """An adapter's rank, alpha and targets on one line."""
    parts = {"attention": config.train_attn, "MLP": config.train_mlp, "unembedding": config.train_unembed}
    targets = config.target_modules or [part for part, trained in parts.items() if trained]
    where = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in targets))
    if any("." in name for name in targets):
        where += f" of {count(len(targets), 'linear')}"
    own = (
        _with_exceptions("rank", config.rank, config.rank_pattern),
        _with_exceptions("alpha", config.alpha, config.alpha_pattern),
    )
    scale = "rsLoRA, " if config.use_rslora else ""
    return f"{', '.join(own)}, {scale}on {where}"


def _with_exceptions(what: str, value: float, exceptions: Mapping[str, float]) -> str:
    values = ", ".join(f"{other:.12g}" for other in sorted(set(exceptions.values())))
    return f"{what} {value:.12g}" + (f" ({values} in {count(len(exceptions), 'linear')})" if exceptions else "")


def count(number: int, noun: str) -> str:
    """A number of things: "1 checkpoint", "2 checkpoints"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
