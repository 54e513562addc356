"""How a command ends: its exit code, for scripts, and one sentence when it could not do what it was asked."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Every code that `tinker-platform` ends with."""

    DONE = 0
    FAILED = 1
    BAD_REQUEST = 2
    """What was asked for cannot be done: asking again does not help."""

    NOT_FOUND = 3
    NOT_ALLOWED = 4
    """There is no API key, the platform does not know it, or it may not do this."""

    NO_ANSWER = 5
    """No platform answers at the address."""

    INTERRUPTED = 130


class CommandError(Exception):
    """A command could not do what it was asked."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
