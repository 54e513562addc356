"""Names of files that the platform sends: relative to a directory, and never outside it."""

from __future__ import annotations

from pathlib import PureWindowsPath

from tinker_client.errors import InternalServerError


def check_file_name(name: str) -> None:
    """Checks a name whose parts are separated by "/", e.g. "additional_chat_templates/tool_use.jinja".

    Raises:
        InternalServerError: it is empty, or could name something outside the directory.
    """
    leaves = {"", ".", ".."} & set(name.split("/")) or PureWindowsPath(name).anchor
    if leaves or "\\" in name or "\0" in name:
        raise InternalServerError(
            f"the platform sent a file called {name!r}, which is not a relative file name", code="INTERNAL"
        )
