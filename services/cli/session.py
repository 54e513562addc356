"""`tinker-platform session`: client processes that have used the platform, and what each has created."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.access import Access, user_command
from services.cli.listing import Limit, in_pages, print_listing
from services.cli.output import NOTHING, age, labels, moment, print_json, print_line, print_properties, print_table

if TYPE_CHECKING:
    from tinker_client.types import Session

app = typer.Typer(help="List client processes and show what each has created.", no_args_is_help=True)


@user_command(app, "list")
def list_sessions(access: Access, limit: Limit = 20) -> None:
    """List your sessions, one for each client process, newest first.

    Example: tinker-platform session list --limit 5
    """

    def fetch(page_size: int, token: str) -> tuple[list[Session], str]:
        page = access.rest.list_sessions(page_size, token).result()
        return page.sessions, page.next_page_token

    sessions = in_pages(fetch, limit)
    print_listing(access, "sessions", sessions, limit, nothing="No sessions yet.", table=_print_sessions)


@user_command(app, "info")
def session_info(
    access: Access,
    session_id: Annotated[str, typer.Argument(metavar="SESSION", help="Id, as `session list` shows it.")],
) -> None:
    """Show a session with its training runs and sampling sessions.

    Example: tinker-platform session info $SESSION
    """
    session = access.rest.get_session(session_id).result()
    if access.wants_json:
        print_json(session)
        return
    now = datetime.now(UTC)
    print_properties(
        f"Session {session.session_id}",
        {
            "Opened": moment(session.create_time, now),
            "Last seen": moment(session.last_seen_time, now),
            "Ended": NOTHING if session.end_time is None else moment(session.end_time, now),
            "Labels": labels(session.user_metadata),
        },
    )
    for title, names in (
        ("Training runs", session.training_run_ids),
        ("Sampling sessions", session.sampling_session_ids),
    ):
        if names:
            print_line(f"\n{title}", style="bold")
        for name in names:
            print_line(f"  {name}")


def _print_sessions(sessions: list[Session]) -> None:
    now = datetime.now(UTC)
    print_table(
        ("SESSION", "STATE", "OPENED", "LAST SEEN", "LABELS"),
        [
            (s.session_id, _state(s), age(s.create_time, now), age(s.last_seen_time, now), labels(s.user_metadata))
            for s in sessions
        ],
    )


def _state(session: Session) -> str:
    return "open" if session.end_time is None else "ended"
