"""Exceptions that the client raises about the platform, and the table from gRPC status to exception.

    TinkerError                       any failure of the platform, or on the way to it
    ├── APIConnectionError            the platform cannot be reached
    │   └── APITimeoutError           it was reached, and did not answer in time
    ├── ForkedClientError             a client is used in a process that was forked from the client's
    └── CodedError                    the platform answered with an error: code, reason, field_violations
        ├── APIStatusError            a call was refused; the class follows the code
        │   ├── BadRequestError       INVALID_ARGUMENT, OUT_OF_RANGE, FAILED_PRECONDITION
        │   ├── AuthenticationError   UNAUTHENTICATED
        │   ├── PermissionDeniedError PERMISSION_DENIED
        │   ├── NotFoundError         NOT_FOUND
        │   ├── ConflictError         ALREADY_EXISTS, ABORTED
        │   ├── RateLimitError        RESOURCE_EXHAUSTED
        │   └── InternalServerError   every other code
        └── RequestFailedError        an accepted operation failed, with any code

The same problem can be found when a call is made or when its operation is carried out: a checkpoint that does not exist
is a NotFoundError or a RequestFailedError, and both are a CodedError with code "NOT_FOUND". Wrong arguments that the
client finds before it sends anything are plain ValueErrors.
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
    """A field of a request that was refused.

    Attributes:
        field: path of the field in the request, e.g. `data[2].loss_fn_inputs["weights"]`.
        description: the rule that the value breaks.
    """

    field: str
    description: str


class TinkerError(Exception):
    """Any failure of the platform, or on the way to it.

    Attributes:
        message: the error as a sentence, equal to `str(error)`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class APIConnectionError(TinkerError):
    """The platform cannot be reached."""


class APITimeoutError(APIConnectionError):
    """The platform was reached but did not answer in time."""


class ForkedClientError(TinkerError, RuntimeError):
    """A client, or a future of one, was used in a forked child, or made there after its parent had made one.

    gRPC does not work in the child of a process that uses it. The child may do everything else.
    """


class CodedError(TinkerError):
    """The platform answered with an error: it refused a call, or an operation failed.

    Attributes:
        message: the error as a sentence.
        code: name of the google.rpc.Code, e.g. "NOT_FOUND".
        reason: constant for programs, e.g. "BAD_SHAPE"; empty if the platform gave none.
        field_violations: the fields that were refused; empty if the error is not about fields.
    """

    def __init__(
        self, message: str, *, code: str, reason: str = "", field_violations: tuple[FieldViolation, ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.field_violations = field_violations


class APIStatusError(CodedError):
    """The platform refused a call; attributes as CodedError."""


class BadRequestError(APIStatusError):
    """INVALID_ARGUMENT, OUT_OF_RANGE or FAILED_PRECONDITION: the request is wrong, or wrong in the present state."""


class AuthenticationError(APIStatusError):
    """UNAUTHENTICATED: the API key is missing, unknown or revoked."""


class PermissionDeniedError(APIStatusError):
    """PERMISSION_DENIED: the key's owner may not do this."""


class NotFoundError(APIStatusError):
    """NOT_FOUND: the thing does not exist, or belongs to another tenant."""


class ConflictError(APIStatusError):
    """ALREADY_EXISTS or ABORTED: the name is in use, or a concurrent change came first."""


class RateLimitError(APIStatusError):
    """RESOURCE_EXHAUSTED: a limit is reached, and waiting does not help (where it does, the client waits)."""


class InternalServerError(APIStatusError):
    """Any other code: a fault of the platform."""


class RequestFailedError(CodedError):
    """An operation failed after it was accepted; the training run continues with its next operation.

    Attributes:
        message: the error as a sentence.
        request_id: name of the operation.
        category: whose fault it was: "user", "server" or "unknown".
        code: name of the google.rpc.Code; "CANCELLED" for a cancelled operation.
        reason: constant for programs, or empty.
        field_violations: the fields that were refused, or empty.
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
        super().__init__(message, code=code, reason=reason, field_violations=field_violations)
        self.request_id = request_id
        self.category = category


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


def used_after_fork(what: str) -> ForkedClientError:
    """The exception for `what`, used in a process that was forked from the one of the client."""
    return ForkedClientError(
        f"{what} cannot be used in this process: it was forked from one that had made a client, and gRPC does not "
        "survive a fork. Use multiprocessing's start method spawn or forkserver (DataLoader: "
        "multiprocessing_context='spawn') and make a new ServiceClient in the child process, or fork before the first "
        "client is made"
    )


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
