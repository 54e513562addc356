"""Rules that both queues share: resends, reused seq_ids, full queues, and jobs that crash their workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from services.core.errors import (
    AlreadyExistsError,
    CancelledError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
)

MAX_ATTEMPTS = 2
_UNITS = {"operations": "operations", "samples": "sampling requests", "bytes": "request bytes"}


def request_digest(request: Message) -> str:
    """Digest of a request with its type: two requests under one seq_id are the same exactly if their digests are."""
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def raise_if_refused(reply: Sequence[Any], operation: str) -> None:
    """Raises the error of an enqueue script's refusal.

    Raises:
        AlreadyExistsError, FailedPreconditionError, ResourceExhaustedError: as `RunLogs.enqueue` says.
    """
    if reply[0] == b"conflict":
        message = f"operation {operation} already exists with a different request; use a new seq_id"
        raise AlreadyExistsError(message, reason="SEQ_ID_USED")
    if reply[0] == b"expired":
        message = f"operation {operation} finished so long ago that its result is gone"
        raise FailedPreconditionError(message, reason="RESULT_EXPIRED")
    if reply[0] == b"full":
        owner, unit = reply[1].decode(), _UNITS[reply[2].decode()]
        # A run's name has colons, a tenant's has none.
        scope = "the platform" if not owner else f"training run {owner}" if ":" in owner else f"tenant {owner}"
        message = f"{scope} already has {int(reply[3])} queued {unit} (limit {int(reply[4])}); retry later"
        raise ResourceExhaustedError(message, reason="QUEUE_FULL", retry_after_s=1.0)


def worker_died_error(operation: str) -> bytes:
    """The stored error of an operation whose worker crashed `MAX_ATTEMPTS` times while running it."""
    message = f"operation {operation} failed: its worker crashed {MAX_ATTEMPTS} times while running it"
    return InternalError(message, reason="WORKER_DIED").to_operation_error().SerializeToString()


def keyless_error(operation: str) -> CancelledError:
    """The error of an operation whose tenant has no API key any more."""
    return CancelledError(
        f"operation {operation} was cancelled: its tenant's last API key was revoked", reason="KEY_REVOKED"
    )


def stored_keyless_error(operation: str) -> bytes:
    """The same error as it is stored."""
    return keyless_error(operation).to_operation_error().SerializeToString()
