"""Names of base models: what options mean, and which spellings of a request are understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.core.base_model_names import (
    ServedModel,
    matching,
    parse_base_model,
    parse_base_models,
    parse_worker_model,
)
from services.core.errors import InvalidArgumentError


def test_base_models_are_names_directories_or_named_directories(tmp_path: Path) -> None:
    directory = tmp_path / "a=b"
    directory.mkdir()
    assert parse_base_model("Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    assert parse_base_model(f"org/name={tmp_path}") == ("org/name", str(tmp_path))
    assert parse_base_model(str(directory)) == ("a=b", str(directory))


def test_names_of_one_directory_are_one_model(tmp_path: Path) -> None:
    directory, other = tmp_path / "tiny", tmp_path / "other"
    directory.mkdir()
    other.mkdir()
    (tmp_path / "link").symlink_to(directory)
    options = [f"first={directory}", str(directory), str(other), f"org/name={tmp_path / 'link'}", f"first={directory}"]
    assert parse_base_models(options) == [
        ServedModel("first", str(directory), ("tiny", "org/name"), (options[0], options[1], options[3])),
        ServedModel("other", str(other), (), (str(other),)),
    ]
    assert parse_base_models(["Qwen/Qwen3-0.6B", "qwen=Qwen/Qwen3-0.6B"]) == [
        ServedModel("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", ("qwen",), ("Qwen/Qwen3-0.6B", "qwen=Qwen/Qwen3-0.6B"))
    ]


def test_one_name_is_one_model(tmp_path: Path) -> None:
    for name in ("a/tiny", "b/tiny"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InvalidArgumentError, match=r"one model for each name \(got two called 'tiny'\)"):
        parse_base_models([str(tmp_path / "a/tiny"), str(tmp_path / "b/tiny")])
    with pytest.raises(InvalidArgumentError, match=r"one model for each name \(got two called 'x'\)"):
        parse_base_models(["y=first", "x=first", "x=second"])


def test_a_worker_serves_one_model_under_several_names() -> None:
    assert parse_worker_model(["a=x", "b=x"]).aliases == ("b",)
    with pytest.raises(InvalidArgumentError, match=r"base_model: must be one model for one worker \(got 2 models\)"):
        parse_worker_model(["a=x", "b=y"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Org/Name", "Org/Name"),
        ("org/NAME", "Org/Name"),
        ("Org/Name:peft:131072", "Org/Name"),
        ("org/name:peft:4", "Org/Name"),
        ("kept:peft:4", "kept:peft:4"),
        ("Org/Name:peft:", None),
        ("Org/Name:peft:x", None),
        ("Org/Name:lora:4", None),
        ("Org/Name ", None),
        ("two", "two"),
        ("TWO", None),
        ("", None),
    ],
)
def test_spellings_of_a_name(name: str, meant: str | None) -> None:
    assert matching(name, ["Org/Name", "kept:peft:4", "two", "Two"]) == meant
