"""The `tinker-platform` command: commands of users, and commands that run the platform.

Commands of users (run, checkpoint, session, model) talk to a platform anywhere, as the Python client does. The
others are for operators: `up` runs everything on one machine, `gateway`, `trainer` and `sampler` run one service each.
A command imports the platform's packages when it runs, so that help is quick and a laptop needs none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from services.cli import checkpoint, keys, model, run, services, session, settings, storage
from services.cli.access import FormatOption
from services.cli.exit_code import CommandError, ExitCode
from services.cli.setting_options import command_with
from services.core.errors import InvalidArgumentError, PlatformError

USERS_GROUPS = {"run": run.app, "checkpoint": checkpoint.app, "session": session.app, "model": model.app}


class UsersFirst(TyperGroup):
    """Lists the commands of users before those that run the platform."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        return sorted(super().list_commands(ctx), key=lambda name: name not in USERS_GROUPS)


app = typer.Typer(
    name="tinker-platform",
    cls=UsersFirst,
    epilog="Exit codes: 0 done, 1 failed, 2 bad request, 3 not found, 4 no API key or not permitted, "
    "5 no platform answers, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_USERS, _OPERATORS = "Your runs and checkpoints", "The platform"
for name, group in USERS_GROUPS.items():
    app.add_typer(group, name=name, rich_help_panel=_USERS)
app.add_typer(keys.app, name="keys", rich_help_panel=_OPERATORS)
app.add_typer(storage.app, name="storage", rich_help_panel=_OPERATORS)

SERVICES: tuple[tuple[Callable[..., None], type[TyperCommand]], ...] = (
    # `up` starts several workers: they cannot share one port.
    (services.up, command_with("UpSettings", without=("worker_port",))),
    (services.gateway, command_with("GatewaySettings")),
    (services.trainer, command_with("TrainerSettings")),
    (services.sampler, command_with("SamplerSettings")),
)
for function, command in SERVICES:
    app.command(cls=command, rich_help_panel=_OPERATORS)(function)
app.command(rich_help_panel=_OPERATORS)(services.health)
app.command(name="settings", rich_help_panel=_OPERATORS)(settings.show)


@app.callback()
def shared_options(context: typer.Context, output_format: FormatOption = None) -> None:
    """Self-hosted LoRA post-training: you write the loop, the platform runs the GPUs."""
    have_it = (*USERS_GROUPS, "settings")
    if output_format is not None and context.invoked_subcommand not in have_it:
        raise typer.BadParameter(f"only {', '.join(have_it)} have this option", param_hint="'--format'")
    context.obj = output_format


def main() -> None:
    """Entry point. A failure ends with one sentence on standard error and an ExitCode."""
    try:
        app()
    except CommandError as error:
        failure, code = error.message, error.exit_code
    except InvalidArgumentError as error:
        failure, code = error.message, ExitCode.BAD_REQUEST
    except PlatformError as error:
        failure, code = error.message, ExitCode.FAILED
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    print(f"Error: {failure}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
