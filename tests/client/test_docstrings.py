"""Docstrings of everything that a user can call or receive name its arguments, results and errors."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tinker_client as tinker
from tinker_client import types

CLASSES = {
    name: value
    for module in (tinker, types)
    for name in module.__all__
    if isinstance(value := getattr(module, name), type) and value.__module__.startswith("tinker_client")
}


def _methods(owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", member)
        written = name == "__init__" and not issubclass(owner, Exception) and owner.__init__.__doc__
        if inspect.isfunction(function) and (not name.startswith("_") or written):
            yield name, function


METHODS = {f"{owner}.{name}": method for owner, value in CLASSES.items() for name, method in _methods(value)}
TWINS = {name for name in METHODS if name.endswith("_async") and name.removesuffix("_async") in METHODS}
FULL = sorted(METHODS.keys() - TWINS)


def _sections(method: Callable[..., Any]) -> dict[str, str]:
    """The text under each heading of a docstring, by heading."""
    parts = re.split(r"^(Args|Returns|Raises):\n", inspect.getdoc(method) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_clients_are_found() -> None:
    assert {"TrainingClient.forward_backward", "RestClient.get_checkpoint", "APIFuture.result"} <= METHODS.keys()
    assert {"TensorData.from_numpy", "ModelInput.from_ints", "ServiceClient.__init__"} <= METHODS.keys()
    assert {"SamplingClient.sample_async", "APIFuture.result_async"} <= TWINS


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_has_a_docstring_that_describes_each_field(name: str) -> None:
    text = inspect.getdoc(CLASSES[name]) or ""
    assert text
    if dataclasses.is_dataclass(CLASSES[name]):
        assert not text.startswith(f"{name}("), "the docstring is the one that dataclass generates"
        attributes = text.partition("Attributes:\n")[2].partition("\nRaises:\n")[0]
        described = re.findall(r"^    (\w+): \S", attributes, flags=re.MULTILINE)
        assert described == [field.name for field in dataclasses.fields(CLASSES[name])]


@pytest.mark.parametrize("name", FULL)
def test_a_method_describes_its_arguments(name: str) -> None:
    method = METHODS[name]
    assert inspect.getdoc(method)
    parameters = [item for item in inspect.signature(method).parameters if item not in ("self", "cls")]
    described = re.findall(r"^    (\w+): \S", _sections(method).get("Args", ""), flags=re.MULTILINE)
    assert described == parameters


@pytest.mark.parametrize("name", FULL)
def test_a_method_describes_its_result_and_its_errors(name: str) -> None:
    method = METHODS[name]
    sections = _sections(method)
    is_future = str(inspect.signature(method).return_annotation).startswith("APIFuture")
    talks = f"{name}_async" in TWINS and not name.endswith(".close")
    if is_future:
        assert "future" in sections["Returns"]
    if is_future or talks or re.search(r"^\s+raise ", inspect.getsource(method), flags=re.MULTILINE):
        assert sections["Raises"].strip()


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_twin_names_the_method_that_describes_it(name: str) -> None:
    sync = name.removesuffix("_async")
    assert f"`{sync.partition('.')[2]}`" in (inspect.getdoc(METHODS[name]) or "")
    assert inspect.signature(METHODS[name]).parameters == inspect.signature(METHODS[sync]).parameters


@pytest.mark.parametrize("name", sorted(name for name in CLASSES if issubclass(CLASSES[name], Exception)))
def test_an_error_describes_its_attributes(name: str) -> None:
    added = {item for item in inspect.signature(CLASSES[name]).parameters if item not in ("args", "kwargs")}
    if "__init__" in vars(CLASSES[name]):
        described = re.findall(r"^    (\w+): \S", inspect.getdoc(CLASSES[name]) or "", flags=re.MULTILINE)
        assert added <= set(described)
