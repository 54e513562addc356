"""`tinker-platform settings`: all settings of the services, their values in this environment, and their origin."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

from services.cli.access import Format, FormatOption
from services.cli.output import NOTHING, print_json, print_line, print_table

if TYPE_CHECKING:
    from services.cli.setting import Setting
    from services.core.errors import InvalidArgumentError


@dataclass(frozen=True)
class Present:
    """A setting's value in this environment, without credentials."""

    setting: Setting
    value: Any
    source: str
    """variable or default."""


def show(context: typer.Context, output_format: FormatOption = None) -> None:
    """List the settings of all services, their values, and whether a variable or the default sets each.

    Credentials in URLs are masked. Variables that services refuse are an error after the list.

    Example: tinker-platform settings -f json
    """
    present, problem = _read()
    if (output_format or context.find_object(Format)) is Format.JSON:
        print_json({"settings": [_as_json(each) for each in present]})
    else:
        _print(present)
    if problem is not None:
        raise problem


def _read() -> tuple[list[Present], InvalidArgumentError | None]:
    """Every setting, and what is wrong with the environment; the values are the variables' texts in that case."""
    from services.cli.setting import settings_of, without_credentials
    from services.core.config import Settings
    from services.core.environment import load_settings
    from services.core.errors import InvalidArgumentError

    given = {variable.upper(): text for variable, text in os.environ.items()}
    all_settings = list(settings_of(Settings))
    values, problem = {each.name: given.get(each.variable, each.default) for each in all_settings}, None
    try:
        values = load_settings(Settings).model_dump(mode="json")
    except InvalidArgumentError as error:
        problem = error
    present = [
        Present(
            setting=each,
            value=without_credentials(values[each.name]) if each.is_secret else values[each.name],
            source="variable" if each.variable in given else "default",
        )
        for each in all_settings
    ]
    return present, problem


def _print(present: list[Present]) -> None:
    from services.cli.setting import shown

    print_line("Each is a flag (--max-runs) of the services that read it, and a variable (TINKER_MAX_RUNS).")
    for group, members in groupby(present, key=lambda each: each.setting.group):
        print_line(f"\nSettings of {group}", style="bold")
        print_table(
            ("SETTING", "VALUE", "FROM", "UNIT", "MEANING"),
            [
                (
                    each.setting.name,
                    shown(each.value, each.setting.unit) or NOTHING,
                    each.source,
                    each.setting.unit or NOTHING,
                    each.setting.description,
                )
                for each in members
            ],
        )


def _as_json(each: Present) -> dict[str, Any]:
    return {
        "name": each.setting.name,
        "variable": each.setting.variable,
        "value": each.value,
        "source": each.source,
        "default": each.setting.default,
        "unit": each.setting.unit or None,
        "description": each.setting.description,
        "services": each.setting.services,
    }
