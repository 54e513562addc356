"""Errors of the platform: one class for each google.rpc.Code that it uses.

A `PlatformError` is raised where the fault is found and is passed on unchanged: as an `OperationError` in a result, or
as a gRPC status with ErrorInfo and BadRequest details from a call. Programs look at two of its parts: `code` says what
kind of error it is and whether a retry can help; `reason`, e.g. "QUEUE_FULL", says which one it is, and is the code's
name unless the error has a reason of its own. docs/reliability.md lists the reasons.

| class                    | code                | meaning                                                   | retry |
|--------------------------|---------------------|-----------------------------------------------------------|-------|
| `InvalidArgumentError`   | INVALID_ARGUMENT    | the request breaks a rule; names field, rule and value    | no    |
| `UnauthenticatedError`   | UNAUTHENTICATED     | the API key is missing or unknown                         | no    |
| `PermissionDeniedError`  | PERMISSION_DENIED   | readable, but only its owner may change it                | no    |
| `NotFoundError`          | NOT_FOUND           | it does not exist, or belongs to another tenant           | no    |
| `AlreadyExistsError`     | ALREADY_EXISTS      | the name is in use                                        | no    |
| `FailedPreconditionError`| FAILED_PRECONDITION | a valid request in the wrong state, e.g. an ended session | no    |
| `CancelledError`         | CANCELLED           | the client cancelled it                                   | no    |
| `DataLossError`          | DATA_LOSS           | a stored file is missing or damaged; names it             | no    |
| `InternalError`          | INTERNAL            | a fault of the platform; its log has the traceback        | no    |
| `UnavailableError`       | UNAVAILABLE         | a part of the platform cannot be reached                  | yes   |
| `DeadlineExceededError`  | DEADLINE_EXCEEDED   | the caller was too slow                                   | yes   |
| `ResourceExhaustedError` | RESOURCE_EXHAUSTED  | a limit is reached; carries the time to wait              | yes   |
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tinker_proto.v1 import operation_pb2

ERROR_DOMAIN = "tinker-platform"
MAX_VALUE_CHARACTERS = 100
"""Longest value that a message prints."""


@dataclass(frozen=True)
class Violation:
    """One bad field: its path in the request, and the rule that its value breaks."""

    field: str
    description: str


def quoted(value: object) -> str:
    """A value as Python writes it, cut so that a message stays short."""
    return _cut(repr(value))


def broken_rule(rule: str, got: str | float | None = None) -> str:
    """The description of a value that breaks a rule: `must be <rule> (got <value>)`, the value cut if it is long."""
    if got is None:
        return f"must be {rule}"
    return f"must be {rule} (got {_cut(f'{got:.12g}' if isinstance(got, float) else str(got))})"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 3]}..."


class PlatformError(Exception):
    """A refusal or failure: `code` and `reason` for programs, `message` for people, `violations` for fields."""

    code: ClassVar[int] = code_pb2.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, reason: str = "", violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = violations

    def to_operation_error(self) -> operation_pb2.OperationError:
        """The error as part of an operation's result."""
        return operation_pb2.OperationError(
            code=self.code,
            message=self.message,
            reason=self.reason,
            field_violations=[
                operation_pb2.FieldViolation(field=violation.field, description=violation.description)
                for violation in self.violations
            ],
        )

    def to_status(self) -> status_pb2.Status:
        """The error as a gRPC status with details."""
        details = [_packed(error_details_pb2.ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN))]
        if self.violations:
            bad_request = error_details_pb2.BadRequest()
            for violation in self.violations:
                bad_request.field_violations.add(field=violation.field, description=violation.description)
            details.append(_packed(bad_request))
        return status_pb2.Status(code=self.code, message=self.message, details=details)


class InvalidArgumentError(PlatformError):
    """The request's content is wrong; names the field, the rule and the value."""

    code = code_pb2.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"

    @classmethod
    def at(cls, field: str, description: str, *, reason: str = "") -> InvalidArgumentError:
        """An error about one field whose description is composed already; see `must_be` for a rule and a value."""
        return cls(f"{field}: {description}", reason=reason, violations=(Violation(field, description),))

    @classmethod
    def must_be(
        cls, field: str, rule: str, got: str | float | None = None, *, reason: str = ""
    ) -> InvalidArgumentError:
        """An error about one field in the form of all: `<field>: must be <rule> (got <value>)`.

        Args:
            field: the path of the field in the request, e.g. "lora_config.rank".
            rule: what completes "must be", e.g. "from 1 to 64".
            got: the value, or words that describe it, e.g. "7 entries"; a text of the client's goes through
                `quoted`. None where there is nothing to print, or where it is a secret.
            reason: the error's reason for programs; INVALID_ARGUMENT if empty.
        """
        return cls.at(field, broken_rule(rule, got), reason=reason)


class UnauthenticatedError(PlatformError):
    """The API key is missing or unknown."""

    code = code_pb2.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(PlatformError):
    """Only its owner may change it: another tenant, who has published it."""

    code = code_pb2.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class NotFoundError(PlatformError):
    """There is no such thing, or it belongs to another tenant."""

    code = code_pb2.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExistsError(PlatformError):
    """The name is in use already."""

    code = code_pb2.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(PlatformError):
    """The request is valid, but not in the present state."""

    code = code_pb2.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class CancelledError(PlatformError):
    """Cancelled by the client."""

    code = code_pb2.CANCELLED
    default_reason = "CANCELLED"


class DataLossError(PlatformError):
    """A stored file is missing, truncated or corrupted; names it."""

    code = code_pb2.DATA_LOSS
    default_reason = "DATA_LOSS"


class UnavailableError(PlatformError):
    """A part of the platform cannot be reached right now; the same call may be repeated."""

    code = code_pb2.UNAVAILABLE
    default_reason = "UNAVAILABLE"

    @classmethod
    def of_queue(cls) -> UnavailableError:
        """The error of a call during which Redis does not answer."""
        return cls("the queue cannot be reached at the moment; try again", reason="QUEUE_UNAVAILABLE")


class DeadlineExceededError(PlatformError):
    """The caller was too slow; the same call may be repeated."""

    code = code_pb2.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"

    @classmethod
    def of_arrival(cls, seconds: float) -> DeadlineExceededError:
        """The error of a request that has not arrived in time."""
        message = f"the request did not arrive within {seconds:g} s of its turn; send less at once, or try again"
        return cls(message, reason="ARRIVED_TOO_SLOWLY")


class ResourceExhaustedError(PlatformError):
    """A limit is reached; the same call may be repeated after `retry_after_s` seconds."""

    code = code_pb2.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, reason: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s

    def to_status(self) -> status_pb2.Status:
        """The error as a gRPC status with details, RetryInfo among them."""
        status = super().to_status()
        delay = duration_pb2.Duration(nanos=round(self.retry_after_s % 1 * 1e9), seconds=int(self.retry_after_s))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status


class InternalError(PlatformError):
    """A fault of the platform itself; the log has the traceback."""

    code = code_pb2.INTERNAL
    default_reason = "INTERNAL"

    incident = ""
    """What the log calls the fault; "" where the message names an operation."""

    @classmethod
    def of_request(cls) -> InternalError:
        """The error of a request whose handling raised anything but a PlatformError; says nothing of the cause."""
        incident = secrets.token_hex(4)
        made = cls(f"the platform failed at this request; its log has the details of incident {incident}")
        made.incident = incident
        return made


def from_operation_error(error: operation_pb2.OperationError) -> PlatformError:
    """The exception that `to_operation_error` came from."""
    kind = _BY_CODE.get(error.code, InternalError)
    raised = kind(error.message, reason=error.reason)
    raised.violations = tuple(Violation(item.field, item.description) for item in error.field_violations)
    return raised


def _packed(
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


_BY_CODE = {kind.code: kind for kind in PlatformError.__subclasses__()}
