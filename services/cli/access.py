"""Parts that all commands of users share: the options --format, --base-url and --api-key, the client, and errors.

`user_command` registers a function that gets an `Access` as its first argument. The client is opened by the first use,
after the arguments are checked, and closed when the command ends. Every failure becomes a `CommandError`.
The client is imported when a command runs: help is quick.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.exit_code import CommandError, ExitCode
from services.cli.state_file import running_grpc_url

if TYPE_CHECKING:
    from tinker_client import RestClient, ServiceClient


class Format(StrEnum):
    """Output formats."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[Format | None, typer.Option("--format", "-f", help="Output format. Default: table.")]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="Address of the platform: grpc://host:port, or grpcs:// for TLS. Default: TINKER_GRPC_URL, else the "
        "platform that `up` runs in this directory, else grpc://127.0.0.1:50051.",
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key", metavar="KEY", help="API key. Prefer TINKER_API_KEY: command lines are visible to other users."
    ),
]

_SHARED = {"output_format": FormatOption, "base_url": BaseUrlOption, "api_key": ApiKeyOption}


class Access:
    """One command's access to the platform."""

    def __init__(self, output_format: Format, base_url: str | None, api_key: str | None) -> None:
        self.wants_json = output_format is Format.JSON
        self._base_url = base_url
        self._api_key = api_key
        self._service: ServiceClient | None = None

    @property
    def service(self) -> ServiceClient:
        """The client; it opens a session only for calls that need one."""
        if self._service is None:
            from tinker_client import ServiceClient

            if not (self._api_key or os.environ.get("TINKER_API_KEY")):
                message = "no API key: set TINKER_API_KEY or pass --api-key (`tinker-platform keys create` creates one)"
                raise CommandError(message, ExitCode.NOT_ALLOWED)
            url = self._base_url or os.environ.get("TINKER_GRPC_URL") or running_grpc_url(_data_dir())
            self._service = ServiceClient({"client": "tinker-platform"}, base_url=url, api_key=self._api_key)
        return self._service

    @functools.cached_property
    def rest(self) -> RestClient:
        """The client of calls that need no session."""
        return self.service.create_rest_client()

    def close(self) -> None:
        """Ends the session, if there is one."""
        if self._service is not None:
            self._service.close()


def user_command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose function gets an Access first; its docstring is the help."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(context: typer.Context, **arguments: Any) -> None:
            output_format, base_url, api_key = (arguments.pop(option) for option in _SHARED)
            access = Access(output_format or context.find_object(Format) or Format.TABLE, base_url, api_key)
            with failing_clearly():
                try:
                    function(access, **arguments)
                finally:
                    access.close()

        kind = inspect.Parameter.KEYWORD_ONLY
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        context = inspect.Parameter("context", kind, annotation=typer.Context)
        shared = [inspect.Parameter(name, kind, annotation=option, default=None) for name, option in _SHARED.items()]
        parameters = [context, *(parameter.replace(kind=kind) for parameter in own), *shared]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name)(command)
        return function

    return register


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turns errors of the client and the file system into a CommandError."""
    from tinker_client import errors

    try:
        yield
    except errors.TinkerError as error:
        raise CommandError(error.message, exit_code_of(error)) from error
    except ValueError as error:
        raise CommandError(str(error), ExitCode.BAD_REQUEST) from error
    except BrokenPipeError:  # the reader of a pipe has closed it: the framework exits silently
        raise
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise CommandError(message, ExitCode.FAILED) from error


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code for an error of the client."""
    from tinker_client import errors

    if isinstance(error, errors.APIConnectionError):
        return ExitCode.NO_ANSWER
    code = error.code if isinstance(error, errors.CodedError) else ""
    return {
        "INVALID_ARGUMENT": ExitCode.BAD_REQUEST,
        "OUT_OF_RANGE": ExitCode.BAD_REQUEST,
        "FAILED_PRECONDITION": ExitCode.BAD_REQUEST,
        "NOT_FOUND": ExitCode.NOT_FOUND,
        "UNAUTHENTICATED": ExitCode.NOT_ALLOWED,
        "PERMISSION_DENIED": ExitCode.NOT_ALLOWED,
    }.get(code, ExitCode.FAILED)


def _data_dir() -> Path:
    return Path(os.environ.get("TINKER_DATA_DIR") or "tinker-data")
