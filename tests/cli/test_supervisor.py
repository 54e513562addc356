"""A child that cannot start is given up with its last words, however long each of its lives is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from services.cli.last_words import last_words
from services.cli.supervisor import Service, Supervisor
from services.core.config import Settings
from services.core.errors import UnavailableError

TRACEBACK = """
import sys
print("one more life", file=sys.stderr)
def load():
    raise ValueError("no such tensor\\nin this file")
load()
"""


async def given_up(tmp_path: Path, program: str) -> tuple[str, Path]:
    """What a supervisor says of a child that runs a program, and its log."""
    supervisor = Supervisor(Settings(data_dir=tmp_path), tmp_path)
    await supervisor.start(Service("trainer a/b", [sys.executable, "-c", program]), "unix:///nobody")
    with pytest.raises(UnavailableError) as caught:
        await supervisor.until_failed()
    await supervisor.stop()
    return caught.value.message, tmp_path / "trainer-a_b.log"


async def test_a_child_that_has_never_served_has_two_lives(tmp_path: Path) -> None:
    message, log = await given_up(tmp_path, TRACEBACK)
    said = "ValueError: no such tensor in this file"
    assert message == f"trainer a/b cannot start (exit code 1): {said} (log: {log})"
    assert log.read_text().count("one more life") == 2


async def test_a_child_that_says_that_trying_again_is_useless_has_one(tmp_path: Path) -> None:
    message, log = await given_up(tmp_path, "import sys; print('Error: base_model: must be one'); sys.exit(2)")
    assert message == f"trainer a/b cannot start (exit code 2): base_model: must be one (log: {log})"
    assert log.read_text().count("Error") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "its log is empty"),
        ("a\nlast\n\n", "last"),
        ("Error: old\nlast", "old last"),
        ("Error: first\n  second\nthird\n", "first second third"),
        (
            'Traceback (most recent call last):\n  File "x"\na.B: no\nTraceback (most recent call last):\nC: yes',
            "C: yes",
        ),
        ("Traceback (most recent call last):\n  cut", "Traceback (most recent call last): cut"),
    ],
)
def test_last_words(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "log").write_text(f"before\n{content}")
    assert last_words(tmp_path / "log", len("before\n")) == words
