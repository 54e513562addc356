"""Which tests start processes: those whose code, helpers or fixtures come to `subprocess` or `multiprocessing`.

Read off the code itself, so that nobody keeps a list: `make quick` leaves these tests out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

MODULES = ("subprocess", "multiprocessing")
CALLS = ("create_subprocess_exec", "create_subprocess_shell")
OURS = ("tests", "testing", "services")


def needs_process(item: pytest.Function) -> bool:
    """Whether a test or one of its fixtures can start a process."""
    conftests = [
        plugin
        for plugin in item.config.pluginmanager.get_plugins()
        if isinstance(plugin, ModuleType) and Path(plugin.__file__ or "").name == "conftest.py"
    ]
    above = [place for place in conftests if item.path.is_relative_to(Path(str(place.__file__)).parent)]
    places = [item.module, *sorted(above, key=lambda place: len(str(place.__file__)), reverse=True)]
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = [*item.fixturenames, *(value for value in parameters if isinstance(value, str))]  # for getfixturevalue
    found = [next((vars(place)[name] for place in places if name in vars(place)), None) for name in names]
    return any(map(starts_process, (item.function, *found)))


@functools.cache
def starts_process(thing: Any) -> bool:
    """Whether a function, or a class by any of its methods, comes to code that starts a process."""
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        found = inspect.unwrap(waiting.pop())
        if id(found) in seen or not _is_ours(found):
            continue
        seen.add(id(found))
        if isinstance(found, type):
            waiting += [getattr(value, "__func__", value) for value in vars(found).values()]
            waiting += [value.fget for value in vars(found).values() if isinstance(value, property)]
            waiting += found.__bases__
        elif isinstance(found, FunctionType):
            names = set(_names(found.__code__))
            if names & {*MODULES, *CALLS}:
                return True
            mentioned = [found.__globals__[name] for name in names if name in found.__globals__]
            modules = [vars(thing) for thing in mentioned if isinstance(thing, ModuleType)]
            waiting += mentioned + [module[name] for module in modules for name in names if name in module]
    return False


def _is_ours(thing: Any) -> bool:
    return isinstance(thing, type | FunctionType) and str(thing.__module__).partition(".")[0] in OURS


def _names(code: CodeType) -> Iterator[str]:
    """Globals, attributes and imports that a code object and those in it mention."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
