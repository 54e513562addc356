"""docs/command-line.md says what programs may rely on, and is complete."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from services.cli.exit_code import ExitCode
from services.cli.main import USERS_GROUPS, app
from services.cli.steps import Step
from tinker_client import types

TEXT = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()


@pytest.mark.parametrize(
    "documented",
    [types.TrainingRun, Step, types.Checkpoint, types.LoraConfig, types.Session, types.SupportedModel],
)
def test_the_fields_of_every_type_are_the_documented_ones(documented: type) -> None:
    (row,) = re.findall(rf"^\| `{documented.__name__}` \| (.*) \|$", TEXT, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == [field.name for field in fields(documented)]


def test_every_exit_code_is_documented() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)} == {int(code) for code in ExitCode}


def test_every_command_of_users_is_documented() -> None:
    (table,) = re.findall(r"^\| command \| what it does \|\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)
    for name, group in USERS_GROUPS.items():
        for command in group.registered_commands:
            assert re.search(rf"`{name} .*{command.name}|, `{command.name} ", table), f"{name} {command.name}"


def names_of(group: typer.Typer) -> set[str]:
    return {command.name or command.callback.__name__ for command in group.registered_commands}


def test_every_command_of_operators_is_documented() -> None:
    (table,) = re.findall(r"^\| command of an operator \| what it does \|\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)
    groups = {group.name: group.typer_instance for group in app.registered_groups if group.name not in USERS_GROUPS}
    nested = {f"{name} {command}" for name, group in groups.items() for command in names_of(group)}
    commands = " ".join(row.split("|")[1] for row in table.splitlines())
    assert set(re.findall(r"`([a-z]+(?: [a-z]+)?)", commands)) == names_of(app) | nested
