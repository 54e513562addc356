"""What tinker_proto.path promises: two forms are read, everything else is refused, and no path leaves its directory."""

from __future__ import annotations

import string
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_proto.path import TinkerPath, check_checkpoint_name, check_run_id

LETTERS = string.ascii_letters + string.digits + "._-"
NAMES = st.text(LETTERS, min_size=1, max_size=200).filter(lambda name: name not in {".", ".."})
RUN_IDS = st.text(LETTERS + ":", min_size=1, max_size=200).filter(lambda run_id: run_id not in {".", ".."})


@given(run_id=RUN_IDS, kind=st.sampled_from(["weights", "sampler_weights", "external_weights"]), name=NAMES)
def test_the_full_form_round_trips(run_id: str, kind: str, name: str) -> None:
    text = f"tinker://{run_id}/{kind}/{name}"
    path = TinkerPath.parse(text)
    assert (path.training_run_id, path.kind, path.name) == (run_id, kind, name)
    assert path.checkpoint_id == f"{kind}/{name}"
    assert str(path) == text


@given(run_id=RUN_IDS, name=NAMES.filter(lambda name: name not in {"weights", "sampler_weights"}))
def test_the_two_part_form_leaves_the_kind_open(run_id: str, name: str) -> None:
    path = TinkerPath.parse(f"tinker://{run_id}/{name}")
    assert path == TinkerPath(run_id, None, name)
    assert path.checkpoint_id == name
    assert str(path) == f"tinker://{run_id}/{name}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "run/weights/a",
        "TINKER://run/weights/a",
        " tinker://run/weights/a",
        "tinker://run/weights/a\n",
        "tinker://run",
        "tinker://run/",
        "tinker:///weights/a",
        "tinker://run/weights/",
        "tinker://run/weights",
        "tinker://run/sampler_weights",
        "tinker://run//a",
        "tinker://run/weights/a/",
        "tinker://run/weights/a/b",
        "tinker://run/other/a",
        "tinker://../weights/a",
        "tinker://./weights/a",
        "tinker://run/weights/..",
        "tinker://run/weights/.",
        "tinker://run/..",
        "tinker://run/weights/a b",
        "tinker://run/weights/a:b",
        "tinker://run/weights/ä",
        "tinker://run/weights/a\\b",
        "tinker://run/weights/a%2fb",
        "tinker://r?n/weights/a",
        f"tinker://run/weights/{'a' * 201}",
        f"tinker://{'r' * 201}/weights/a",
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a tinker path|must be a checkpoint name|must be a training run id"):
        TinkerPath.parse(text)


@given(text=st.text(max_size=60) | st.text("tinker:/.\\aw", max_size=30).map(lambda tail: f"tinker://{tail}"))
def test_no_accepted_path_leaves_its_directory(text: str) -> None:
    try:
        path = TinkerPath.parse(text)
    except ValueError:
        return
    parts = PurePosixPath(f"/root/{path.training_run_id}/{path.checkpoint_id}").parts
    assert ".." not in parts
    assert len(parts) == 4 + (path.kind is not None)


def test_parts_are_checked_however_a_path_is_made() -> None:
    with pytest.raises(ValueError, match="checkpoint kind: must be one of weights, sampler_weights"):
        TinkerPath("run", "other", "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="checkpoint name"):
        TinkerPath("run", "weights", "../a")
    with pytest.raises(ValueError, match="training run id"):
        TinkerPath("..", "weights", "a")


def test_names_and_run_ids_can_be_checked_alone() -> None:
    check_checkpoint_name("step-0100_final.v2")
    check_run_id("0b9c:train:3")
    with pytest.raises(ValueError, match="1 to 200 characters"):
        check_checkpoint_name("run:1")
    with pytest.raises(ValueError, match="1 to 200 characters"):
        check_run_id("")
