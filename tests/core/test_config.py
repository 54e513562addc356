"""Settings: flags over variables over defaults, and nothing is ignored."""

from __future__ import annotations

import pytest

from services.core.config import GROUPS, GatewaySettings, Settings, UpSettings, fingerprints_of
from services.core.environment import load_settings
from services.core.errors import InvalidArgumentError


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(Settings).grpc_port == 50051
    monkeypatch.setenv("TINKER_GRPC_PORT", "6000")
    assert load_settings(Settings).grpc_port == 6000
    assert load_settings(Settings, grpc_port=7000).grpc_port == 7000
    assert load_settings(Settings, grpc_port=None).grpc_port == 6000


def test_up_opens_reflection_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(Settings).reflection == "key"
    assert load_settings(UpSettings).reflection == "open"
    monkeypatch.setenv("TINKER_REFLECTION", "off")
    assert load_settings(UpSettings).reflection == "off"


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "TINKER_MAX_RUN",
            "unknown setting TINKER_MAX_RUN; did you mean TINKER_MAX_RUNS? (`tinker-platform settings` lists all)",
        ),
        (
            "TINKER_GRPC_PROT",
            "unknown setting TINKER_GRPC_PROT; did you mean TINKER_GRPC_PORT? (`tinker-platform settings` lists all)",
        ),
        ("TINKER_ZEBRA", "unknown setting TINKER_ZEBRA (`tinker-platform settings` lists all)"),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_it_and_the_similar_one(
    monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "6000")
    with pytest.raises(InvalidArgumentError) as refused:
        load_settings(Settings)
    assert (refused.value.message, refused.value.reason) == (message, "UNKNOWN_SETTING")


def test_variables_of_clients_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_GRPC_URL"):
        monkeypatch.setenv(name, "x")
    assert load_settings(Settings) == Settings()


def test_fingerprints_are_listed_with_commas() -> None:
    one, other = "0123456789abcdef-" * 2 + "0" * 16, "-".join(["f" * 16] * 3)
    assert fingerprints_of(load_settings(Settings, accepted_fingerprints=f"{one},{other}")) == {one, other}
    assert fingerprints_of(Settings()) == set()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("grpc_port", "70000", "an integer from 0 to 65535"),
        ("grpc_port", "first", "an integer from 0 to 65535"),
        ("lease_seconds", "0", "a number, at least 1"),
        ("arrival_seconds", "0", "a number above 0"),
        ("snapshot_share", "2", "a number above 0, at most 1"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("deterministic", "maybe", "true or false"),
        ("accepted_fingerprints", "all", "fingerprints of base models, with commas between them"),
    ],
)
def test_a_bad_value_names_its_variable_or_flag_and_the_rule(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, rule: str
) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InvalidArgumentError) as refused:
        load_settings(Settings, **{name: value})
    assert (refused.value.message, refused.value.reason) == (f"{flag}: must be {rule} (got {value!r})", "BAD_SETTING")
    monkeypatch.setenv(f"TINKER_{name.upper()}", value)
    with pytest.raises(InvalidArgumentError) as refused:
        load_settings(Settings)
    assert refused.value.message == f"TINKER_{name.upper()}: must be {rule} (got {value!r})"


def test_a_service_on_its_own_needs_a_redis() -> None:
    with pytest.raises(InvalidArgumentError, match="TINKER_REDIS_URL"):
        load_settings(Settings).with_redis()


def test_every_setting_belongs_to_one_group_and_is_described() -> None:
    defined = [name for group in GROUPS for name in group.__annotations__ if name in group.model_fields]
    assert sorted(defined) == sorted(Settings.model_fields)
    assert [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")] == []


def test_a_service_has_its_own_settings_and_those_of_all() -> None:
    assert {"grpc_port", "log_level"} <= GatewaySettings.model_fields.keys()
    assert not {"max_runs", "max_sequences", "device"} & GatewaySettings.model_fields.keys()
