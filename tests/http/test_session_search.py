"""Search of sessions: each filter, pages without a gap or a repeat, and nothing of another tenant."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from services.core.catalog.sessions import GRACE
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection


async def opened(http: httpx.AsyncClient, **fields: Any) -> str:
    answer = await http.post("create_session", json={"tags": [], "sdk_version": "0", **fields})
    return str(answer.json()["session_id"])


async def search(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post("sessions/search", json=fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def found(http: httpx.AsyncClient, **fields: Any) -> list[str]:
    return [session["session_id"] for session in (await search(http, **fields))["sessions"]]


async def test_every_filter_finds_its_own(http: httpx.AsyncClient, connection: RedisConnection) -> None:
    nightly = await opened(http, display_name="Nightly run 7", user_metadata={"team": "a"}, project_id="p")
    plain = await opened(http)
    failed = await opened(http, user_metadata={"team": "b"})
    finish = {"reason": {"type": "errored"}, "detail": "out of money"}
    assert (await http.post(f"sessions/{failed}/finish", json=finish)).status_code == 204
    silent = await opened(http)
    long_ago = -GRACE.total_seconds() - 1
    await connection.commands.hincrbyfloat(keyspace.session(silent), "seen", long_ago)
    assert await found(http) == [silent, failed, plain, nightly]
    assert await found(http, display_name="7 NIGHT") == [nightly]
    assert await found(http, display_name="night", session_id=plain) == [plain, nightly], "one of the two is enough"
    assert await found(http, user_metadata={"team": "b"}) == [failed]
    assert await found(http, user_metadata={"tinker.project_id": "p"}) == []
    assert await found(http, project_ids=["p", "q"]) == [nightly]
    assert await found(http, statuses=[{"type": "active"}]) == [plain, nightly]
    assert await found(http, statuses=[{"type": "client_finished", "reasons": ["success"]}]) == []
    assert await found(http, statuses=[{"type": "cancelled"}, {"type": "client_finished"}]) == [failed]
    assert await found(http, owner={"type": "user", "owner_urns": ["alice"]}, limit=1) == [silent]
    assert await found(http, owner={"type": "user", "owner_urns": ["mallory"]}) == []
    by_id = {session["session_id"]: session for session in (await search(http))["sessions"]}
    assert by_id[silent]["status"] is None
    assert by_id[failed]["status"] == {"type": "client_finished", **finish}
    assert (by_id[nightly]["owner"], by_id[nightly]["checkpoints_count"]) == ("alice", 0)


async def test_pages_follow_each_other(http: httpx.AsyncClient) -> None:
    made = [await opened(http, display_name=f"run {index % 2}") for index in range(7)]
    pages, cursor = list[list[str]](), None
    while True:
        page = await search(http, display_name="run 0", limit=2, cursor=cursor)
        pages.append([session["session_id"] for session in page["sessions"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert pages == [[made[6], made[4]], [made[2], made[0]]]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit": 201}, "limit"),
        ({"statuses": []}, "statuses"),
        ({"statuses": [{"type": "other"}]}, "statuses"),
        ({"owner": {"type": "nobody"}}, "owner"),
        ({"cursor": {"last_created_at": "2026-01-01T00:00:00", "last_session_id": "a"}}, "cursor"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused_by_name(
    http: httpx.AsyncClient, fields: dict[str, Any], field: str
) -> None:
    answer = await http.post("sessions/search", json=fields)
    assert answer.status_code in (400, 422)
    assert field in answer.text
