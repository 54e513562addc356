"""Fault of an operation that failed: the caller's or the platform's, by the error's google.rpc.Code.

The wire has the code alone; the client and the gateway's HTTP port say whose fault it was by this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from google.rpc import code_pb2

Fault = Literal["user", "server", "unknown"]

FAULTS: Mapping[int, Fault] = {
    code_pb2.CANCELLED: "user",
    code_pb2.UNKNOWN: "unknown",
    code_pb2.INVALID_ARGUMENT: "user",
    code_pb2.DEADLINE_EXCEEDED: "server",
    code_pb2.NOT_FOUND: "user",
    code_pb2.ALREADY_EXISTS: "user",
    code_pb2.PERMISSION_DENIED: "user",
    code_pb2.UNAUTHENTICATED: "user",
    code_pb2.RESOURCE_EXHAUSTED: "server",
    code_pb2.FAILED_PRECONDITION: "user",
    code_pb2.ABORTED: "server",
    code_pb2.OUT_OF_RANGE: "user",
    code_pb2.UNIMPLEMENTED: "unknown",
    code_pb2.INTERNAL: "server",
    code_pb2.UNAVAILABLE: "server",
    code_pb2.DATA_LOSS: "server",
}


def fault_of(code: int) -> Fault:
    """Whose fault an error with this code is; "unknown" for a code that does not exist."""
    return FAULTS.get(code, "unknown")
