"""Settings on the command line: flags made from the settings, and the list of all of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from services.cli.setting import without_credentials
from services.core.config import CommonSettings, GatewaySettings, SamplerSettings, Settings, TrainerSettings, UpSettings
from tests.cli.conftest import Run

MODELS: dict[str, tuple[type[CommonSettings], set[str]]] = {
    "up": (UpSettings, {"worker_port"}),
    "gateway": (GatewaySettings, set()),
    "trainer": (TrainerSettings, set()),
    "sampler": (SamplerSettings, set()),
}


@pytest.mark.parametrize("service", MODELS)
def test_the_help_of_a_service_lists_its_settings_and_no_others(
    tinker_platform: Run, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TINKER_REDIS_URL", "redis://:geheim@host")
    told = tinker_platform(service, "--help")
    model, without = MODELS[service]
    expected = model.model_fields.keys() - without
    assert told.code == 0
    assert set(re.findall(r"env var: TINKER_([A-Z_]+)", told.out)) == {name.upper() for name in expected}
    for name in expected:
        assert f"--{name.replace('_', '-')} " in told.out
        assert model.model_fields[name].description in told.out
    assert "open|key|off" in told.out
    assert "[default: 67108864 (64 MiB)]" in told.out
    assert "geheim" not in told.out


def test_every_setting_is_in_the_help_of_a_service() -> None:
    assert set().union(*(model.model_fields for model, _ in MODELS.values())) == set(Settings.model_fields)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `up` and a gateway would run with."""
    seen: dict[str, Any] = {}

    async def run_up(settings: UpSettings, base_models: list[str]) -> None:
        seen.update(settings.model_dump(), base_models=base_models)

    async def serve(settings: GatewaySettings) -> None:
        seen.update(settings.model_dump())

    monkeypatch.setattr("services.cli.up.run_up", run_up)
    monkeypatch.setattr("services.gateway.main.serve", serve)
    return seen


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default(
    tinker_platform: Run, monkeypatch: pytest.MonkeyPatch, loaded: dict[str, Any]
) -> None:
    monkeypatch.setenv("TINKER_MAX_RUNS", "5")
    monkeypatch.setenv("TINKER_MAX_ADAPTERS", "6")
    done = tinker_platform("up", "--base-model", "a", "--base-model", "b", "--max-runs", "7", "--deterministic")
    assert done.code == 0
    assert loaded["base_models"] == ["a", "b"]
    assert [loaded[name] for name in ("max_runs", "max_adapters", "max_sequences")] == [7, 6, 64]
    assert (loaded["deterministic"], loaded["reflection"]) == (True, "open")


def test_a_service_accepts_the_variables_of_the_others(
    tinker_platform: Run, monkeypatch: pytest.MonkeyPatch, loaded: dict[str, Any]
) -> None:
    monkeypatch.setenv("TINKER_MAX_RUNS", "5")
    assert tinker_platform("gateway", "--redis-url", "redis://127.0.0.1:1", "--http-port", "81").code == 0
    assert loaded["http_port"] == 81


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gateway", "--grpc-port", "x"], "--grpc-port: must be an integer from 0 to 65535 (got 'x')"),
        (["gateway", "--log-level", "loud"], "--log-level: must be one of debug, info, warning, error (got 'loud')"),
        (
            ["sampler", "--base-model", "a", "--lease-seconds", "0"],
            "--lease-seconds: must be a number, at least 1 (got",
        ),
        (["gateway"], "redis_url: must be set"),
    ],
)
def test_a_bad_flag_is_one_sentence(tinker_platform: Run, arguments: list[str], message: str) -> None:
    refused = tinker_platform(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"Error: {message}")


def test_a_bad_variable_is_one_sentence(tinker_platform: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GRPC_PORT", "x")
    refused = tinker_platform("gateway")
    assert refused.err == "Error: TINKER_GRPC_PORT: must be an integer from 0 to 65535 (got 'x')\n"
    assert refused.code == 2


def test_settings_lists_all_with_their_values_and_origin(tinker_platform: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_MAX_RUNS", "5")
    monkeypatch.setenv("TINKER_REDIS_URL", "redis://me:geheim@host:1/0?password=geheim")
    listed = {item["name"]: item for item in tinker_platform("settings", "-f", "json").json["settings"]}
    assert list(listed) == list(dict.fromkeys(listed))
    assert listed.keys() == Settings.model_fields.keys()
    assert listed["max_runs"] == {
        "name": "max_runs",
        "variable": "TINKER_MAX_RUNS",
        "value": 5,
        "source": "variable",
        "default": 64,
        "unit": "training runs",
        "description": Settings.model_fields["max_runs"].description,
        "services": ["trainer"],
    }
    assert (listed["max_sequences"]["value"], listed["max_sequences"]["source"]) == (64, "default")
    assert listed["redis_url"]["value"] == "redis://***@host:1/0?***"
    told = tinker_platform("settings").out
    assert [line.split()[:3] for line in told.splitlines() if line.startswith("max_runs ")] == [
        ["max_runs", "5", "variable"]
    ]
    assert "geheim" not in told


def test_settings_lists_all_also_in_an_environment_that_services_refuse(
    tinker_platform: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_MAX_RUN", "5")
    monkeypatch.setenv("TINKER_GRPC_PORT", "6000")
    told = tinker_platform("settings")
    assert told.code == 2
    assert all(f"\n{name} " in told.out for name in Settings.model_fields)
    assert "did you mean TINKER_MAX_RUNS?" in told.err


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("", ""),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("redis://:geheim@host", "redis://***@host"),
        ("redis://me:ge/h@eim@host", "redis://***@host"),
        ("redis://me:ge#heim@host", "redis://***"),
        ("unix:///run/redis.sock?password=ge@heim", "unix://***"),
        ("unix:///run/redis.sock?password=geheim", "unix:///run/redis.sock?***"),
        ("me:geheim@host", "***@host"),
    ],
)
def test_credentials_are_masked(url: str, masked: str) -> None:
    assert without_credentials(url) == masked
