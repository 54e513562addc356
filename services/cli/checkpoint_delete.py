"""`tinker-platform checkpoint delete`: deletes one checkpoint or many, after one question.

Each checkpoint is deleted by its own call, several at a time; the report has a line for each.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.access import Access, exit_code_of
from services.cli.checkpoint_choice import After, Before, Choice, RunId, TypeOption, parse_path
from services.cli.checkpoint_output import print_checkpoints
from services.cli.exit_code import CommandError, ExitCode
from services.cli.output import count, print_json, print_line, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinker_client import RestClient

AT_ONCE = 16


@dataclass
class Deletions:
    """Paths by the outcome of their deletion."""

    deleted: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)


def delete(
    access: Access,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", help="Checkpoints to delete.")] = None,
    run_id: RunId = None,
    checkpoint_type: TypeOption = None,
    before: Before = None,
    after: After = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Delete checkpoints, named by path or selected by the options of `checkpoint list`.

    The command asks once. Deleted checkpoints cannot be restored.

    Example: tinker-platform checkpoint delete --run-id $RUN --before 2026-01-31
    """
    choice = Choice.of(run_id, checkpoint_type, before, after)
    if bool(paths) is choice.is_narrow:
        raise typer.BadParameter("either PATH, or at least one of --run-id, --type, --before and --after, is required")
    chosen = _by_path(paths) if paths else _by_choice(access, choice, show=not yes)
    if chosen and not yes:
        _ask(chosen)
    deletions = _delete(access.rest, chosen)
    _report(access, deletions)
    if deletions.failed:
        codes = {exit_code_of(error) for error in deletions.failed.values()}
        code = codes.pop() if len(codes) == 1 and not deletions.deleted else ExitCode.FAILED
        raise CommandError(f"{count(len(deletions.failed), 'checkpoint')} could not be deleted", code)


def _by_path(paths: Sequence[str]) -> list[str]:

    return list(dict.fromkeys(str(parse_path(path)) for path in paths))


def _by_choice(access: Access, choice: Choice, *, show: bool) -> list[str]:
    chosen = list(choice.checkpoints(access.rest, 0))
    if show and chosen:
        print_checkpoints(chosen, to_stderr=True)
        total = size(sum(item.size_bytes for item in chosen))
        print_line(f"{count(len(chosen), 'checkpoint')}, {total}", to_stderr=True)
    return [item.tinker_path for item in chosen]


def _ask(chosen: Sequence[str]) -> None:
    what = chosen[0] if len(chosen) == 1 else f"these {len(chosen):,} checkpoints"
    print(f"Delete {what}? It cannot be restored. [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    if not sys.stdin.isatty():
        print(file=sys.stderr)
    if answer not in ("y", "yes"):
        raise CommandError("nothing was deleted (-y deletes without asking)", ExitCode.FAILED)


def _delete(rest: RestClient, paths: Sequence[str]) -> Deletions:
    from tinker_client import TinkerError

    deletions = Deletions()
    for first in range(0, len(paths), AT_ONCE):
        group = paths[first : first + AT_ONCE]
        for path, future in [(path, rest.delete_checkpoint_from_tinker_path(path)) for path in group]:
            try:
                future.result()
            except TinkerError as error:
                deletions.failed[path] = error
            else:
                deletions.deleted.append(path)
    return deletions


def _report(access: Access, deletions: Deletions) -> None:
    if access.wants_json:
        failed = [{"tinker_path": path, "error": str(error)} for path, error in deletions.failed.items()]
        print_json({"deleted": deletions.deleted, "failed": failed})
        return
    for path in deletions.deleted:
        print_line(f"deleted {path}")
    for path, error in deletions.failed.items():
        print_line(f"not deleted: {path}: {error}", to_stderr=True)
    if not deletions.deleted and not deletions.failed:
        print_line("No checkpoints match.")
