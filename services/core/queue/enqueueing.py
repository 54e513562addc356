"""What both queues answer alike: a resend, a reused seq_id, a full queue, and a job that kills its workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from services.core.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
)

MAX_ATTEMPTS = 2
_UNITS = {"operations": "operations", "samples": "sampling requests", "bytes": "bytes of requests"}


def request_digest(request: Message) -> str:
    """Tells a resend from a different request under the same seq_id, of another method with equal fields too."""
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def raise_if_refused(reply: Sequence[Any], operation: str) -> None:
    """Turns the enqueue scripts' refusals into errors.

    Raises:
        AlreadyExistsError, FailedPreconditionError, ResourceExhaustedError: as `RunLogs.enqueue` says.
    """
    if reply[0] == b"conflict":
        message = f"operation {operation} exists with another request: its seq_id has been used"
        raise AlreadyExistsError(message, reason="SEQ_ID_USED")
    if reply[0] == b"expired":
        message = f"operation {operation} was carried out so long ago that its result is gone"
        raise FailedPreconditionError(message, reason="RESULT_EXPIRED")
    if reply[0] == b"full":
        whose, what = reply[1].decode(), reply[2].decode()
        waiting = f"{int(reply[3])} {_UNITS[what]} {f'of {whose} ' if whose else ''}are waiting already"
        message = f"{waiting}, and allowed are {int(reply[4])}; send operation {operation} again later"
        raise ResourceExhaustedError(message, reason="QUEUE_FULL", retry_after_s=1.0)


def death_notice(operation: str) -> bytes:
    """The stored error of an operation whose workers died at it `MAX_ATTEMPTS` times."""
    message = f"operation {operation} was given up: its worker died {MAX_ATTEMPTS} times while carrying it out"
    return InternalError(message, reason="WORKER_DIED").to_operation_error().SerializeToString()
