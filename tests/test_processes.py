"""The marker `process`: set on what starts a process in any way, and on nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testing.platform import Platform


def is_marked(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("process") is not None


def run_nothing() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def make_platform(directory: Path) -> Platform:
    return Platform(directory, directory)


@pytest.fixture
def run_before() -> None:
    run_nothing()


@pytest.fixture(params=["run_before", "another"])
def by_name(request: pytest.FixtureRequest) -> str:
    if request.param == "run_before":
        request.getfixturevalue("run_before")
    return str(request.param)


def test_what_starts_a_process_is_marked(request: pytest.FixtureRequest) -> None:
    run_nothing()
    assert is_marked(request)


@pytest.mark.usefixtures("run_before")
def test_what_uses_a_fixture_that_starts_one_is_marked(request: pytest.FixtureRequest) -> None:
    assert is_marked(request)


def test_what_asks_for_such_a_fixture_by_name_is_marked(request: pytest.FixtureRequest, by_name: str) -> None:
    assert is_marked(request) == (by_name == "run_before")


def test_what_makes_something_that_starts_one_is_marked(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    assert make_platform(tmp_path).process is None
    assert is_marked(request)


def test_what_needs_the_queue_is_marked(request: pytest.FixtureRequest, redis_url: str) -> None:
    assert redis_url
    assert is_marked(request)


def test_what_starts_none_is_not_marked(request: pytest.FixtureRequest, data_dir: Path) -> None:
    assert data_dir.name == "data"
    assert not is_marked(request)
