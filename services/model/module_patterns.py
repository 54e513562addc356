"""Patterns of module names in PEFT's configurations: which linears one means, and what PEFT does with each.

Names in a list mean every module whose dotted path ends with them. The keys of rank_pattern and alpha_pattern, and
names that are given as one string, are regular expressions of whoever wrote the file. Those that can be more than names
are matched in a process of their own (services.model.regex_process).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from services.model import regex_process

ALL_LINEAR = "all-linear"
"""Every linear but the unembedding."""

_PLAIN = re.compile(r"[\w.^]*", re.ASCII)
"""Nothing in it can be matched in more than one way."""

_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
_TIMEOUT_S = 120


class PatternError(ValueError):
    """An expression that cannot be read, or not matched in bounded time."""

    def __init__(self, option: str, rule: str, expression: str) -> None:
        super().__init__(f"{option} must be {rule}")
        self.option = option
        self.rule = rule
        self.expression = expression


@dataclass(frozen=True)
class Targets:
    """What a configuration says about which modules it adapts."""

    target_modules: str | Sequence[str]
    exclude_modules: str | Sequence[str]
    layer_numbers: Collection[int]
    """Numbers of the adapted layers; empty for all."""

    layer_lists: Sequence[str]
    """Expressions for the lists that the layers are in; empty for any."""


def targeted(targets: Targets, names: Sequence[str], unembedding: str) -> set[str]:
    """The names that PEFT would adapt.

    Raises:
        PatternError: an expression is no good.
    """
    excluded = _named("exclude_modules", targets.exclude_modules, names)
    if isinstance(targets.target_modules, str) and targets.target_modules.lower() == ALL_LINEAR:
        return {name for name in names if name != unembedding} - excluded
    found = _named("target_modules", targets.target_modules, names)
    if targets.layer_numbers and not isinstance(targets.target_modules, str):
        numbers, in_full = _layer_numbers(targets.layer_lists, names), frozenset(targets.target_modules)
        found = {name for name in found if name in in_full or numbers.get(name) in targets.layer_numbers}
    return found - excluded


def by_pattern(option: str, patterns: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The value of the first pattern that matches each name, where one does.

    Raises:
        PatternError: a key is no good.
    """
    found: dict[str, float] = {}
    matches = _matches(option, {key: rf"(.*\.)?({key})$" for key in patterns}, names)
    for value, matched in zip(patterns.values(), matches, strict=True):
        for name in matched:
            found.setdefault(name, value)
    return found


def _named(option: str, modules: str | Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that one expression matches whole, or that end with one of a list."""
    if isinstance(modules, str):
        (found,) = _matches(option, {modules: modules}, names, whole=True)
        return set(found)
    wanted = frozenset(modules)
    return {name for name in names if not wanted.isdisjoint(_endings(name))}


def _endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _layer_numbers(layer_lists: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """The number of the layer that a module is in, by the first list that it is in."""
    if not layer_lists:
        return {name: int(match["idx"]) for name in names if (match := _LAYER.match(name))}
    expressions = {item: rf"(?:^|.*?\.){item}\.(?P<idx>\d+)\." for item in layer_lists}
    numbers: dict[str, int] = {}
    for matched in _matches("layers_pattern", expressions, names):
        for name, index in matched.items():
            numbers.setdefault(name, int(index))
    return numbers


def _matches(
    option: str, expressions: Mapping[str, str], names: Sequence[str], *, whole: bool = False
) -> list[dict[str, str]]:
    """The names that each of some expressions matches.

    Args:
        option: where they are from.
        expressions: by the text of each that stands in the file.
        names: the names.
        whole: whether a name must match to the end.
    """
    question = [(expression, whole) for expression in expressions.values()]
    is_plain = all(map(_PLAIN.fullmatch, expressions))
    found = regex_process.find(question, names) if is_plain else _find_apart(option, expressions, question, names)
    matches = []
    for text, matched in zip(expressions, found, strict=True):
        if isinstance(matched, str):
            raise PatternError(option, f"a regular expression that can be read ({matched})", text)
        matches.append(matched)
    return matches


def _find_apart(
    option: str, texts: Collection[str], question: Sequence[tuple[str, bool]], names: Sequence[str]
) -> list[dict[str, str] | str]:
    command = [sys.executable, "-I", "-S", regex_process.__file__]
    try:
        answer = subprocess.run(
            command,
            input=json.dumps([question, list(names)]),
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        if (
            isinstance(error, subprocess.CalledProcessError)
            and error.returncode > 0
            and "MemoryError" not in error.stderr
        ):
            raise
        limits = f"{regex_process.CPU_SECONDS} seconds and {regex_process.MEMORY_BYTES >> 20} MiB"
        raise PatternError(
            option, f"a regular expression that is matched within {limits}", max(texts, key=len)
        ) from error
    found: list[dict[str, str] | str] = json.loads(answer.stdout)
    return found
