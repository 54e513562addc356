"""Command-line options for settings: a command takes a class of settings and has a flag for each of its fields.

The options are made when the command's help is shown or the command runs: until then nothing of the platform is
imported. Flags are text here; the settings check them, so that a flag and a variable are refused in the same words.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand

_FLAGS = "services.cli.setting_options"


def command_with(settings: str, *, without: tuple[str, ...] = ()) -> type[TyperCommand]:
    """A class of commands whose options include the settings of a class.

    Args:
        settings: name of a class in `services.core.config`.
        without: fields that get no option.
    """

    class SettingsCommand(TyperCommand):
        """A command that finds its settings in `flags_of`."""

        def get_params(self, ctx: Any) -> list[Any]:
            """The options of the command's function, then those of its settings."""
            return [*super().get_params(ctx), *_options(settings, without)]

        def invoke(self, ctx: Any) -> Any:
            """Calls the function without the settings."""
            values = {option.name: ctx.params.pop(option.name) for option in _options(settings, without)}
            ctx.meta[_FLAGS] = {name: value for name, value in values.items() if _is_flag(ctx, name)}
            return super().invoke(ctx)

    return SettingsCommand


def flags_of(context: typer.Context) -> Mapping[str, Any]:
    """The settings that were given as flags, by field name."""
    flags: Mapping[str, Any] = context.meta[_FLAGS]
    return flags


def _is_flag(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@functools.cache
def _options(settings: str, without: tuple[str, ...]) -> tuple[Any, ...]:
    from services.cli.setting import Setting, settings_of, shown
    from services.core import config

    def parameter(setting: Setting) -> inspect.Parameter:
        flag = f"{setting.flag}/--no-{setting.flag[2:]}" if setting.is_switch else setting.flag
        default = setting.default if setting.is_switch else shown(setting.default, setting.unit)
        option = typer.Option(
            default,
            flag,
            metavar=None if setting.is_switch else setting.value_name,
            help=setting.description,
            envvar=setting.variable,
            rich_help_panel=f"Settings of {setting.group}",
        )
        kind, annotation = inspect.Parameter.KEYWORD_ONLY, bool if setting.is_switch else str
        return inspect.Parameter(setting.name, kind, annotation=annotation, default=option)

    def settings_only(**_: Any) -> None: ...

    parameters = [parameter(each) for each in settings_of(getattr(config, settings)) if each.name not in without]
    settings_only.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    settings_only.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(settings_only)
    return tuple(typer.main.get_command(app).params)
