"""Keys of Redis: the scripts spell those that they compose themselves exactly as keyspace.py does."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources

from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from tests.core.queue_parts import BASE, RUN, Queues

_COMPOSED = re.compile(r"prefix \.\. '([^']+)'")
_LITERAL_KEY = re.compile(r"'([a-z-]+:)'")


def _scripts() -> dict[str, str]:
    return {file.name: file.read_text() for file in (resources.files("services.core.queue") / "lua").iterdir()}


def _without_prefix(key: str) -> str:
    assert key.startswith(keyspace.PREFIX)
    return key.removeprefix(keyspace.PREFIX)


def test_scripts_compose_the_keys_that_keyspace_names() -> None:
    composed = {name for source in _scripts().values() for name in _COMPOSED.findall(source)}
    before_kind, _ = keyspace.run_checkpoints_of_kind("", "<kind>").split("<kind>")
    named = [
        keyspace.session(""),
        keyspace.session_runs(""),
        keyspace.session_samplings(""),
        keyspace.sampling_session(""),
        keyspace.tenant_sessions(""),
        keyspace.tenant_samplings(""),
        keyspace.OPEN_SESSIONS,
        keyspace.open_sessions(""),
        keyspace.KEYLESS_TENANTS,
        keyspace.LOAD,
        keyspace.load(""),
        keyspace.checkpoint(""),
        keyspace.tenant_checkpoints(""),
        keyspace.run_checkpoints(""),
        keyspace.unnamed_weights(""),
        keyspace.run_unnamed_weights(""),
        keyspace.inflight_weights(""),
        before_kind,
    ]
    assert composed == {_without_prefix(key) for key in named}


def test_scripts_spell_no_key_but_those_behind_the_prefix() -> None:
    """But for the operation's key, which `prefix_of` takes apart; `tenant:` begins fields of a hash."""
    spelled = Counter(name for source in _scripts().values() for name in _LITERAL_KEY.findall(source))
    composed = Counter(
        name for source in _scripts().values() for name in _COMPOSED.findall(source) if name.endswith(":")
    )
    others = set(spelled - composed)
    assert others == {_without_prefix(keyspace.operation("")), "tenant:"}


async def test_an_enqueued_operation_writes_no_key_that_keyspace_does_not_name(queues: Queues) -> None:
    await queues.enqueue(0, tenant="alice")
    session_id = RUN.partition(":")[0]
    expected = {
        keyspace.operation(f"{RUN}:0"),
        keyspace.run_log(RUN),
        keyspace.run_meta(RUN),
        keyspace.waiting_runs(BASE),
        keyspace.session(session_id),
        keyspace.LOAD,
        keyspace.load("alice"),
    }
    written = {key.decode() for key in await queues.connection.commands.keys(f"{keyspace.PREFIX}*")}
    assert written == expected


def test_the_scripts_keep_as_many_events_as_keyspace_says() -> None:
    connection = RedisConnection.open("redis://localhost:1")
    for script in connection.scripts.values():
        assert script.script.startswith(f"local EVENTS_KEPT = {keyspace.EVENTS_KEPT}\n")
