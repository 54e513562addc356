"""One table: every error travels as a status and as an operation's error, and comes back as itself."""

from __future__ import annotations

import re

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from services.core import errors
from services.core.errors import (
    MAX_VALUE_CHARACTERS,
    InvalidArgumentError,
    PlatformError,
    ResourceExhaustedError,
    from_operation_error,
    quoted,
)

KINDS = PlatformError.__subclasses__()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_an_operations_result(kind: type[PlatformError]) -> None:
    original = kind("what was wrong", reason="A_REASON")
    back = from_operation_error(original.to_operation_error())
    assert type(back) is kind
    assert (back.message, back.reason) == ("what was wrong", "A_REASON")


def test_no_two_errors_share_a_code() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    assert {kind.code for kind in KINDS} <= {code.value[0] for code in grpc.StatusCode}


def test_the_table_of_the_docstring_has_every_class_with_its_code() -> None:
    rows = re.findall(r"^\| `(\w+)` *\| (\w+) *\|", errors.__doc__ or "", re.MULTILINE)
    assert sorted(rows) == sorted((kind.__name__, code_pb2.Code.Name(kind.code)) for kind in KINDS)


def test_a_bad_field_is_named_in_status_and_operation() -> None:
    error = InvalidArgumentError.must_be("data[3].model_input", "one token or more", "none")
    bad_request = error_details_pb2.BadRequest()
    (detail,) = [d for d in error.to_status().details if d.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
    detail.Unpack(bad_request)
    assert bad_request.field_violations[0].field == "data[3].model_input"
    assert from_operation_error(error.to_operation_error()).violations == error.violations


def test_a_broken_rule_is_named_with_the_value() -> None:
    error = InvalidArgumentError.must_be("rank", "from 1 to 64", 0, reason="A_REASON")
    assert (error.message, error.reason) == ("rank: must be from 1 to 64 (got 0)", "A_REASON")
    assert error.violations[0].description == "must be from 1 to 64 (got 0)"
    assert InvalidArgumentError.must_be("eps", "above 0", -1e-8).message == "eps: must be above 0 (got -1e-08)"
    assert (
        InvalidArgumentError.must_be("token", "one of this platform").message == "token: must be one of this platform"
    )


@pytest.mark.parametrize("value", ["x" * 10_000, "'\n" * 5_000], ids=["plain", "escaped"])
def test_a_long_value_is_cut(value: str) -> None:
    for got in (value, quoted(value)):
        error = InvalidArgumentError.must_be("loss_fn", "a loss", got)
        assert len(error.message) == len("loss_fn: must be a loss (got )") + MAX_VALUE_CHARACTERS


def test_a_quoted_value_stays_on_its_line() -> None:
    assert quoted("a\nb") == "'a\\nb'"


def test_a_limit_says_when_to_come_back() -> None:
    status = ResourceExhaustedError("full", retry_after_s=1.5).to_status()
    retry = error_details_pb2.RetryInfo()
    (detail,) = [d for d in status.details if d.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    detail.Unpack(retry)
    assert retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 == pytest.approx(1.5)
