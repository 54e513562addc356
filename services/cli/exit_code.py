"""Exit codes, and the error of a command that failed."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `tinker-platform`."""

    DONE = 0
    FAILED = 1
    BAD_REQUEST = 2
    """The request is invalid; repeating it does not help."""

    NOT_FOUND = 3
    NOT_ALLOWED = 4
    """There is no API key, the platform does not know it, or it may not do this."""

    NO_ANSWER = 5
    """No platform answers at the address."""

    INTERRUPTED = 130


class CommandError(Exception):
    """The failure of a command: its message and exit code."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
