"""Settings: flags over variables over defaults, and nothing is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.core.config import load_settings, parse_base_model
from services.core.errors import InvalidArgumentError


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().grpc_port == 50051
    monkeypatch.setenv("TINKER_GRPC_PORT", "6000")
    assert load_settings().grpc_port == 6000
    assert load_settings(grpc_port=7000).grpc_port == 7000
    assert load_settings(grpc_port=None).grpc_port == 6000


def test_an_unknown_variable_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GRPC_PROT", "6000")
    with pytest.raises(InvalidArgumentError, match="TINKER_GRPC_PROT"):
        load_settings()


def test_variables_of_clients_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_GRPC_URL"):
        monkeypatch.setenv(name, "x")
    load_settings()


@pytest.mark.parametrize(("name", "value"), [("GRPC_PORT", "70000"), ("LEASE_SECONDS", "0"), ("LOG_LEVEL", "loud")])
def test_a_bad_value_is_an_error_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TINKER_{name}", value)
    with pytest.raises(InvalidArgumentError, match=f"TINKER_{name}"):
        load_settings()


def test_a_service_on_its_own_needs_a_redis() -> None:
    with pytest.raises(InvalidArgumentError, match="TINKER_REDIS_URL"):
        load_settings().with_redis()


def test_base_models_are_names_directories_or_named_directories(tmp_path: Path) -> None:
    directory = tmp_path / "a=b"
    directory.mkdir()
    assert parse_base_model("Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    assert parse_base_model(f"org/name={tmp_path}") == ("org/name", str(tmp_path))
    assert parse_base_model(str(directory)) == ("a=b", str(directory))
