"""Whose fault a failed operation is: one table, whichever way its result is fetched."""

from __future__ import annotations

import json

import grpc
import pytest

from services.gateway.http.sdk.results import error_result
from tinker_client.errors import from_operation_error
from tinker_proto.fault import FAULTS, fault_of
from tinker_proto.v1 import operation_pb2

CODES = {code.value[0]: code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


def test_every_code_has_a_fault() -> None:
    assert set(FAULTS) == set(CODES)


@pytest.mark.parametrize("code", CODES, ids=CODES.values())
def test_the_client_and_the_http_port_say_the_same(code: int) -> None:
    error = operation_pb2.OperationError(code=code, message="a sentence")
    category = json.loads(bytes(error_result(error).body))["category"]
    assert category == from_operation_error("run:1", error).category == fault_of(code)


def test_a_code_that_does_not_exist_is_nobodys_fault() -> None:
    assert fault_of(99) == "unknown"
