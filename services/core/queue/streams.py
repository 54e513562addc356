"""Typed reads of Redis streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError


@dataclass(frozen=True)
class StreamEntry:
    """One entry of one stream."""

    stream: str
    entry_id: str
    fields: dict[bytes, bytes]


async def read(client: Any, positions: Mapping[str, str], *, count: int, block_ms: int) -> list[StreamEntry]:
    """Waits up to `block_ms` for entries after the position of each stream."""
    return _flat(await client.xread(dict(positions), count=count, block=block_ms))


async def read_group(
    client: Any, group: str, consumer: str, stream: str, *, count: int, block_ms: int | None = None
) -> list[StreamEntry]:
    """Takes new entries of a stream for `consumer`, and waits up to `block_ms` for them if that is given."""
    return _flat(await client.xreadgroup(group, consumer, {stream: ">"}, count=count, block=block_ms))


async def take_over(
    client: Any, group: str, consumer: str, stream: str, *, idle_ms: int, count: int
) -> list[StreamEntry]:
    """Takes up to `count` entries whose consumer has been silent for `idle_ms`.

    One call scans ten times `count` entries and returns where it stopped; the scan goes on from there.
    """
    position, taken = "0-0", list[Any]()
    while len(taken) < count:
        reply: Any = await client.xautoclaim(
            stream, group, consumer, min_idle_time=idle_ms, start_id=position, count=count - len(taken)
        )
        position, found = reply[0].decode(), reply[1]
        taken += found
        if position == "0-0":
            break
    return [_entry(stream, entry) for entry in taken]


async def has_waiting(client: Any, group: str, stream: str, *, idle_ms: int) -> bool:
    """Whether a stream has entries that no consumer has taken, or whose consumer has been silent for `idle_ms`."""
    if await client.xpending_range(stream, group, "-", "+", 1, idle=idle_ms):
        return True
    (delivered,) = [
        info["last-delivered-id"] for info in await client.xinfo_groups(stream) if info["name"] == group.encode()
    ]
    return bool(await client.xrange(stream, min=f"({delivered.decode()}", count=1))


async def keep(client: Any, group: str, consumer: str, stream: str, entry_ids: Sequence[str]) -> None:
    """Renews a consumer's entries, so that no other consumer takes them over."""
    if entry_ids:
        await client.xclaim(stream, group, consumer, 0, list(entry_ids), justid=True)


async def remove(client: Any, group: str, stream: str, entry_id: str) -> None:
    """Removes an entry from a stream and from its consumer."""
    pipeline = client.pipeline(transaction=True)
    pipeline.xack(stream, group, entry_id)
    pipeline.xdel(stream, entry_id)
    await pipeline.execute()


async def make_group(client: Any, group: str, stream: str) -> None:
    """Creates a consumer group that reads a stream from its beginning, unless it exists."""
    try:
        await client.xgroup_create(stream, group, id="0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


async def entries(client: Any, stream: str, *, after: str, count: int) -> list[StreamEntry]:
    """Entries of a stream after `after`, oldest first."""
    reply: Any = await client.xrange(stream, min=f"({after}", count=count)
    return [_entry(stream, entry) for entry in reply]


async def last_id(client: Any, stream: str) -> str:
    """Id of the newest entry, "0-0" if there is none."""
    newest: Any = await client.xrevrange(stream, count=1)
    return newest[0][0].decode() if newest else "0-0"


def entry_of(stream: str, reply: Sequence[Any]) -> StreamEntry:
    """An entry as a script returns it: its id, then names and values in turn."""
    entry_id, words = reply
    return StreamEntry(stream, entry_id.decode(), dict(zip(words[::2], words[1::2], strict=True)))


def _flat(reply: Any) -> list[StreamEntry]:
    return [_entry(stream.decode(), entry) for stream, items in reply or [] for entry in items]


def _entry(stream: str, entry: tuple[bytes, dict[bytes, bytes]]) -> StreamEntry:
    return StreamEntry(stream, entry[0].decode(), entry[1])
