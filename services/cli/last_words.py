"""The last words of a process: the error at the end of its log, as one line."""

from __future__ import annotations

from pathlib import Path

_LONGEST = 600
_ERROR = "Error: "
_TRACEBACK = "Traceback (most recent call last):"


def last_words(log: Path, start: int = 0) -> str:
    """What a log says last, from a byte on: a command's error or a traceback's, however many lines, or the last line.

    Args:
        log: the file.
        start: where the process began to write.
    """
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "its log is empty"
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith(_ERROR):
            return _joined([lines[index].removeprefix(_ERROR), *lines[index + 1 :]])
        if lines[index].startswith(_TRACEBACK):
            raised = next((at for at in range(index + 1, len(lines)) if not lines[at].startswith(" ")), index)
            return _joined(lines[raised:])
    return _joined(lines[-1:])


def _joined(lines: list[str]) -> str:
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
