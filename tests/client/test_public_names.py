"""The exported names exist, agree with each other, and include every class that a user can receive."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import torch

import tinker_client as tinker
from tinker_client import errors, types

PACKAGES = [tinker, types]
# Names that the annotations use and that are imported for type checkers alone.
UNIMPORTED = {"PreTrainedTokenizerBase": object, "CustomLoss": list, "torch": torch}


@pytest.mark.parametrize("module", PACKAGES, ids=lambda module: module.__name__)
def test_every_exported_name_exists_once(module: ModuleType) -> None:
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_every_type_is_exported_by_both() -> None:
    assert set(types.__all__) <= set(tinker.__all__)
    assert all(getattr(tinker, name) is getattr(types, name) for name in types.__all__)


def test_types_exports_all_that_it_defines_or_imports_from_the_client() -> None:
    public = {name for name, value in vars(types).items() if _is_own_class(value)}
    assert public <= set(types.__all__)


def test_every_error_is_exported() -> None:
    raised = {
        name for name, value in vars(errors).items() if _is_own_class(value) and value.__module__ == errors.__name__
    }
    assert raised
    assert raised <= set(tinker.__all__)


def test_every_class_that_a_user_receives_is_exported() -> None:
    received: set[type] = set()
    waiting = [value for name in tinker.__all__ if _is_own_class(value := getattr(tinker, name))]
    while waiting:
        owner = waiting.pop()
        if owner in received:
            continue
        received.add(owner)
        waiting.extend(part for hint in _returned(owner) for part in _parts(hint) if _is_own_class(part))
    assert {item.__name__ for item in received} - set(tinker.__all__) == set()
    assert {types.Checkpoint, types.TrainingRun, types.SampledToken, types.LoraConfig} <= received


def _is_own_class(value: object) -> bool:
    return isinstance(value, type) and value.__module__.partition(".")[0] == "tinker_client"


def _returned(owner: type) -> Iterator[Any]:
    """Annotations of what a user gets from a class: fields, properties, and what public methods return."""
    if dataclasses.is_dataclass(owner):
        yield from get_type_hints(owner, localns=UNIMPORTED).values()
    for name, member in inspect.getmembers_static(owner):
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and not name.startswith("_"):
            yield get_type_hints(function, localns=UNIMPORTED).get("return")


def _parts(hint: Any) -> Iterator[Any]:
    yield getattr(hint, "__origin__", hint)
    for part in get_args(hint):
        yield from _parts(part)
