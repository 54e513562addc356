"""Refusals become typed errors with everything the platform said, and wrong set-ups get a sentence that helps."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

import tinker_client as tinker
from services.core import errors as platform_errors
from tests.client.loopback import KEY, LoopbackPlatform
from tinker_client import errors
from tinker_client._address import Address


def test_every_error_of_the_platform_arrives_as_its_class_with_all_details(
    platform: LoopbackPlatform, service: tinker.ServiceClient
) -> None:
    expected = {
        platform_errors.InvalidArgumentError: tinker.BadRequestError,
        platform_errors.FailedPreconditionError: tinker.BadRequestError,
        platform_errors.UnauthenticatedError: tinker.AuthenticationError,
        platform_errors.NotFoundError: tinker.NotFoundError,
        platform_errors.AlreadyExistsError: tinker.ConflictError,
        platform_errors.DataLossError: tinker.InternalServerError,
        platform_errors.InternalError: tinker.InternalServerError,
    }
    for kind, raised in expected.items():
        error = kind("a sentence", reason="WHY", violations=(platform_errors.Violation("a.b", "is bad"),))
        platform.refuse_before["GetServerCapabilities"].append(error)
        with pytest.raises(raised, match="a sentence") as caught:
            service.get_server_capabilities()
        assert type(caught.value) is raised
        assert caught.value.code == code_pb2.Code.Name(kind.code)
        assert caught.value.reason == "WHY"
        assert caught.value.field_violations == (tinker.FieldViolation("a.b", "is bad"),)


def test_every_status_code_has_a_class(platform: LoopbackPlatform, service: tinker.ServiceClient) -> None:
    retried = {
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
    for status in set(grpc.StatusCode) - retried:
        platform.refuse_before["GetServerCapabilities"].append(status)
        with pytest.raises(tinker.APIStatusError) as caught:
            service.get_server_capabilities()
        assert caught.value.code == status.name
        assert isinstance(caught.value, tinker.TinkerError)


@pytest.mark.parametrize(
    ("kind", "category"),
    [
        (platform_errors.InvalidArgumentError, "user"),
        (platform_errors.NotFoundError, "user"),
        (platform_errors.CancelledError, "user"),
        (platform_errors.InternalError, "server"),
        (platform_errors.DataLossError, "server"),
        (platform_errors.UnavailableError, "server"),
    ],
)
def test_a_failed_operation_says_whose_fault_it_was(kind: type[platform_errors.PlatformError], category: str) -> None:
    original = kind("a sentence", reason="WHY", violations=(platform_errors.Violation("a", "b"),))
    error = errors.from_operation_error("run:1", original.to_operation_error())
    assert (error.message, error.request_id, error.category, error.reason) == ("a sentence", "run:1", category, "WHY")
    assert error.code == code_pb2.Code.Name(kind.code)
    assert error.field_violations == (errors.FieldViolation("a", "b"),)


def test_refused_calls_and_failed_operations_share_a_base_with_code() -> None:
    original = platform_errors.NotFoundError("a sentence", reason="NO_CHECKPOINT")
    failed = errors.from_operation_error("run:1", original.to_operation_error())
    refused = tinker.NotFoundError("a sentence", code="NOT_FOUND", reason="NO_CHECKPOINT")
    for error in (failed, refused):
        assert isinstance(error, tinker.CodedError)
        assert (error.message, error.code, error.reason) == ("a sentence", "NOT_FOUND", "NO_CHECKPOINT")
        assert error.field_violations == ()


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    drawing = [line for line in str(errors.__doc__).splitlines() if line.startswith("    ")]
    drawn = [line.strip(" ├─│└").split()[0] for line in drawing]
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    own = [item for item in classes if item.__module__ == errors.__name__]
    depths = {item.__name__: sum(issubclass(parent, tinker.TinkerError) for parent in item.__mro__) - 1 for item in own}
    indents = {name: line.index(name) // 4 - 1 for name, line in zip(drawn, drawing, strict=True)}
    assert indents == depths


def test_a_wrong_key_is_an_authentication_error(platform: LoopbackPlatform) -> None:
    with (
        tinker.ServiceClient(base_url=platform.url, api_key="wrong") as service,
        pytest.raises(tinker.AuthenticationError, match="unknown") as caught,
    ):
        service.create_lora_training_client("m")
    assert caught.value.reason == "UNKNOWN_API_KEY"


def test_a_missing_key_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with pytest.raises(tinker.AuthenticationError, match="tinker-platform keys create"):
        tinker.ServiceClient()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://localhost:8000", "this client speaks gRPC"),
        ("https://localhost", "this client speaks gRPC"),
        ("localhost:50051", "not a server address"),
        ("127.0.0.1", "not a server address"),
        ("grpc://", "not a server address"),
        ("grpc://host:port", "port outside"),
        ("grpc://host:99999", "port outside"),
        ("grpc://host/path", "more than a host and a port"),
        ("grpc://user@host", "more than a host and a port"),
    ],
)
def test_a_wrong_address_is_refused_with_what_is_allowed(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        tinker.ServiceClient(base_url=url, api_key=KEY)
    assert "grpc://host:port" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "target", "secure"),
    [
        ("grpc://host", "host:50051", False),
        ("grpc://host:1/", "host:1", False),
        ("grpcs://host", "host:443", True),
        ("grpc://[::1]:7", "[::1]:7", False),
    ],
)
def test_addresses(url: str, target: str, secure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address.parse(url)
    assert (address.target, address.secure) == (target, secure)
    assert Address.parse(str(address)) == address
    monkeypatch.setenv("TINKER_GRPC_URL", url)
    assert Address.resolve(None) == address
    assert Address.resolve("grpc://other").host == "other"
    monkeypatch.delenv("TINKER_GRPC_URL")
    assert str(Address.resolve(None)) == "grpc://127.0.0.1:50051"


@given(st.text(max_size=30) | st.text("grpcs:/[]@?#0123", max_size=20))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert address.host
