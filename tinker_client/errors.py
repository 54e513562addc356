"""Everything that this client raises about the platform, and the one table from gRPC status to exception.

A call that the platform refuses, or that does not reach it, raises an `APIStatusError` or `APIConnectionError`; an
operation that was accepted and failed later raises `RequestFailedError`. Both carry the code, the reason for programs
and the bad fields. Wrong arguments found before anything is sent are plain ValueErrors.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from tinker_proto.fault import fault_of
from tinker_proto.v1 import operation_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """One bad field: its path in the request, and what is wrong with it and what is allowed."""

    field: str
    description: str


class TinkerError(Exception):
    """Any failure of the platform or on the way to it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class APIConnectionError(TinkerError):
    """The platform cannot be reached."""


class APITimeoutError(APIConnectionError):
    """The platform was reached but did not answer in time."""


class APIStatusError(TinkerError):
    """The platform refused a call: `code` is a google.rpc.Code by name, `reason` a constant for programs."""

    def __init__(
        self, message: str, *, code: str, reason: str = "", field_violations: tuple[FieldViolation, ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.field_violations = field_violations


class BadRequestError(APIStatusError):
    """INVALID_ARGUMENT, OUT_OF_RANGE or FAILED_PRECONDITION: the request is wrong, or wrong at this moment."""


class AuthenticationError(APIStatusError):
    """UNAUTHENTICATED: the API key is missing, unknown or revoked."""


class PermissionDeniedError(APIStatusError):
    """PERMISSION_DENIED: the key may not do this."""


class NotFoundError(APIStatusError):
    """NOT_FOUND: it does not exist, or belongs to another tenant."""


class ConflictError(APIStatusError):
    """ALREADY_EXISTS or ABORTED: the name is taken, or someone else was faster."""


class RateLimitError(APIStatusError):
    """RESOURCE_EXHAUSTED: a limit is reached that waiting does not lift."""


class InternalServerError(APIStatusError):
    """Any other code: a fault of the platform itself."""


class RequestFailedError(TinkerError):
    """An operation failed after it was accepted; the training run goes on with its next operation.

    `request_id` is the operation's name; `category` says whose fault it was. A cancelled operation has code CANCELLED.
    """

    def __init__(
        self,
        message: str,
        *,
        request_id: str,
        category: Literal["user", "server", "unknown"],
        code: str = "UNKNOWN",
        reason: str = "",
        field_violations: tuple[FieldViolation, ...] = (),
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.category = category
        self.code = code
        self.reason = reason
        self.field_violations = field_violations


_BY_CODE: dict[grpc.StatusCode, type[APIStatusError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequestError,
    grpc.StatusCode.OUT_OF_RANGE: BadRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: BadRequestError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimitError,
}
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


def from_rpc_error(error: grpc.aio.AioRpcError) -> APIStatusError:
    """The exception for a call that ended with a status other than OK."""
    code = error.code()
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    unpack_detail(error, info)
    unpack_detail(error, bad_request)
    violations = tuple(FieldViolation(item.field, item.description) for item in bad_request.field_violations)
    message = error.details() or f"the platform answered {code.name}"
    return _BY_CODE.get(code, InternalServerError)(
        message, code=code.name, reason=info.reason, field_violations=violations
    )


def from_operation_error(name: str, error: operation_pb2.OperationError) -> RequestFailedError:
    """The exception for operation `name` that finished with an error."""
    return RequestFailedError(
        error.message,
        request_id=name,
        category=fault_of(error.code),
        code=_CODE_NAMES.get(error.code, "UNKNOWN"),
        reason=error.reason,
        field_violations=tuple(FieldViolation(item.field, item.description) for item in error.field_violations),
    )


def retry_delay(error: grpc.aio.AioRpcError) -> timedelta | None:
    """How long the platform asks to wait before the same call is sent again; None if it does not ask for that."""
    info = error_details_pb2.RetryInfo()
    return info.retry_delay.ToTimedelta() if unpack_detail(error, info) else None


def unpack_detail(error: grpc.aio.AioRpcError, detail: Message) -> bool:
    """Fills `detail` from the status' details; False if there is none of its type."""
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                packed = status_pb2.Status.FromString(value).details
            except DecodeError:
                return False
            return any(item.Unpack(detail) for item in packed)
    return False
