"""Names that the platform derives: sessions, training runs, sampling sessions and operations.

`<sid>`, `<sid>:train:<n>`, `<sid>:sample:<n>`, `<run or sampling session>:<seq_id>`. Every name starts with its
session's, so an operation's session, and with it the client that waits for it, can be read off its name.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from services.core.errors import InvalidArgumentError, quoted

_OPERATION = re.compile(r"(?P<scope>[a-z0-9-]{1,64}:(?P<kind>train|sample):\d{1,19}):(?P<seq_id>\d{1,19})", re.ASCII)
MAX_SEQ_ID = 2**53 - 1
"""Of an operation on a run: scripts in Redis count with it."""

MAX_SAMPLE_SEQ_ID = 2**63 - 1
"""Of a request on a sampling session: a part of its name and no more."""


@dataclass(frozen=True)
class OperationName:
    """An operation's name in its parts."""

    scope: str
    """The training run or the sampling session."""

    seq_id: int

    def __str__(self) -> str:
        return f"{self.scope}:{self.seq_id}"

    @property
    def session_id(self) -> str:
        """The session that it belongs to."""
        return session_of(self.scope)

    @property
    def trains(self) -> bool:
        """Whether this is an operation of a training run."""
        return ":train:" in self.scope

    @classmethod
    def parse(cls, name: str) -> OperationName:
        """Reads an operation's name.

        Raises:
            InvalidArgumentError: it is not one.
        """
        match = _OPERATION.fullmatch(name)
        if match is None:
            rule = "<training_run_id>:<seq_id> or <sampling_session_id>:<seq_id>"
            raise InvalidArgumentError.must_be("name", rule, quoted(name))
        return cls(match["scope"], int(match["seq_id"]))


def new_session_id() -> str:
    """A fresh session id that cannot be guessed (160 bits)."""
    return secrets.token_hex(20)


def training_run_id(session_id: str, seq_id: int) -> str:
    """Id of a session's n-th training run."""
    return f"{session_id}:train:{seq_id}"


def sampling_session_id(session_id: str, seq_id: int) -> str:
    """Id of a session's n-th sampling session."""
    return f"{session_id}:sample:{seq_id}"


def session_of(name: str) -> str:
    """The session that a name belongs to."""
    return name.partition(":")[0]
