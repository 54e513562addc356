"""What people and programs read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest

from services.cli import output
from tinker_client.types import LoraConfig

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "now"),
        (1, "1 s ago"),
        (59.9, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (7200, "2 h ago"),
        (86_400 * 400, "400 d ago"),
        (-90, "in 1 min"),
        (-86_400, "in 1 d"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert output.age(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (LoraConfig(4), "rank 4, alpha 32, on attention, MLP, unembedding"),
        (LoraConfig(4, train_mlp=False, use_rslora=True), "rank 4, alpha 32, rsLoRA, on attention, unembedding"),
        (LoraConfig(4, alpha=5.66, target_modules=["q_proj", "v_proj"]), "rank 4, alpha 5.66, on q_proj, v_proj"),
        (
            LoraConfig(
                4,
                alpha=1 << 20,
                target_modules=["a.0.q_proj", "a.1.q_proj", "a.1.v_proj"],
                rank_pattern={"a.0.q_proj": 8, "a.1.q_proj": 2},
                alpha_pattern={"a.1.v_proj": 0.5},
            ),
            "rank 4 (2, 8 in 2 linears), alpha 1048576 (0.5 in 1 linear), on q_proj, v_proj of 3 linears",
        ),
    ],
)
def test_an_adapter_is_one_line(config: LoraConfig, text: str) -> None:
    assert output.adapter(config) == text


def test_a_moment_is_shown_in_utc_whatever_its_zone() -> None:
    time = datetime(2026, 1, 31, 12, 30, tzinfo=timezone(timedelta(hours=1)))
    assert output.moment(time, NOW) == "2026-01-31 11:30:00 UTC (30 min ago)"


def test_a_table_never_cuts_or_folds_a_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "tinker://" + "a" * 120 + "/weights/step-1"
    output.print_table(("TYPE", "PATH"), [("training", path), ("sampler", "short")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert first == f"training  {path}"
    assert (header, second) == ("TYPE      PATH", "sampler   short")


def test_wide_characters_keep_the_columns_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "NEXT"), [("灯台", "x"), ("lamp", "y")])
    assert capsys.readouterr().out.splitlines() == ["NAME  NEXT", "灯台  x", "lamp  y"]


def test_labels_of_others_cannot_steer_the_terminal_and_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("LABELS",), [(output.labels({"note": "\x1b[2J\r\n[red]x[/red]"}),)])
    assert capsys.readouterr().out.splitlines() == ["LABELS", "note=\ufffd[2J\ufffd\ufffd[red]x[/red]"]


def test_json_has_type_names_utc_times_and_only_numbers_json_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @dataclass(frozen=True)
    class Thing:
        time: datetime
        values: dict[str, float]
        targets: list[str] | None
        public: bool

    zone = timezone(timedelta(hours=2))
    time = datetime(2026, 1, 31, 14, 0, 0, 123_456, zone)
    output.print_json({"things": [Thing(time, {"a": float("nan"), "b": 0.5}, None, True)]})
    assert json.loads(capsys.readouterr().out) == {
        "things": [
            {"time": "2026-01-31T12:00:00.123Z", "values": {"a": None, "b": 0.5}, "targets": None, "public": True}
        ]
    }
