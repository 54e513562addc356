"""A disk that is really full: Redis ends, is waited for and comes back with its data; what is stored stays readable."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rich.console import Console

from services.cli.supervisor import Service, Supervisor
from services.core.config import Settings
from services.core.errors import ResourceExhaustedError, UnavailableError
from services.core.storage.open import open_storage, room_for_work
from services.core.storage.reserve import Space
from testing.platform import free_port
from testing.waiting import wait_until

LOCATION = "checkpoints/s:train:0/weights/a/1"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mounted)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(disk: Path, leave: int = 0, name: str = "filler") -> Path:
    """Writes a file that takes all space but `leave` bytes."""
    filler = disk / name
    with open(filler, "wb", buffering=0) as file:
        try:
            while (free := Space.of(disk).free) > leave:
                file.write(bytes(min(1 << 16, free - leave)))
        except OSError:
            pass
    return filler


def write_for_ever(client: redis.Redis) -> None:
    while True:
        client.append("more", b"x" * 4096)


async def test_redis_is_waited_for_until_there_is_space(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (disk / "logs").mkdir()
    said = io.StringIO()  # what pytest captures is lost where one thread reads while another writes
    monkeypatch.setattr("services.cli.supervisor.console", Console(file=said, width=1000))
    supervisor = Supervisor(Settings(data_dir=disk), disk / "logs")
    url = await supervisor.start_redis()

    def has_said(sentence: str) -> bool:
        return sentence in said.getvalue()

    with redis.Redis.from_url(url) as client:
        client.set("accepted", "before")
        fill(disk, leave=1 << 18)  # what saves have left of a disk of this size
        filler = fill(disk, name="more")
        with pytest.raises(redis.ConnectionError):
            write_for_ever(client)
    await asyncio.to_thread(
        wait_until, lambda: has_said("is full: redis has stopped, and starts again when there is space")
    )
    lives = disk.parent / "lives"
    program = f"open({str(lives)!r}, 'a').write('.'); raise SystemExit('no Redis')"
    await supervisor.start(Service("gateway", [sys.executable, "-c", program]), url)
    failed = asyncio.create_task(supervisor.until_failed())
    await asyncio.to_thread(wait_until, lives.exists)
    filler.unlink()
    await asyncio.to_thread(wait_until, lambda: has_said("redis is up"))
    assert not failed.done(), "nothing is given up meanwhile"
    with redis.Redis.from_url(url) as client:
        assert client.get("accepted") == b"before"
        client.set("accepted", "after")
    with pytest.raises(UnavailableError, match="gateway cannot start"):
        await failed
    assert lives.read_text() == "...", "one without Redis, two with it"
    await supervisor.stop()


def test_up_on_a_full_disk_says_one_sentence(disk: Path) -> None:
    fill(disk)
    ports = ["--grpc-port", str(free_port()), "--http-port", str(free_port())]
    command = [sys.executable, "-m", "services.cli.main", "up", "--base-model", "x=y", "--data-dir", str(disk), *ports]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"Error: the disk of {disk} is full (0 KiB are free): Redis cannot write; make room, and start again\n"
    )


def test_saves_stop_at_the_reserve_new_work_at_half_of_it_and_reading_never(disk: Path) -> None:
    settings = Settings(data_dir=disk, reserve_bytes=2 << 20)
    storage = open_storage(settings)

    def save(location: str, size: int) -> None:
        with storage.write_directory(location) as directory:
            (directory / "weights").write_bytes(bytes(size))

    save(LOCATION, 1 << 20)
    with pytest.raises(
        ResourceExhaustedError, match=r"are free, and 2\.0 MiB are a reserve.*was not written"
    ) as caught:
        save(f"{LOCATION}2", 13 << 19)  # which fits, but leaves half a MiB
    assert caught.value.reason == "STORAGE_FULL"
    room_for_work(settings).check()
    fill(disk, leave=3 << 19)
    with pytest.raises(ResourceExhaustedError, match=r"a reserve"):
        save(f"{LOCATION}2", 1)
    with pytest.raises(ResourceExhaustedError, match=r"a reserve"), storage.write_file("uploads/a"):
        pass
    room_for_work(settings).check()
    storage.put("blobs/result", b"of what was accepted")
    fill(disk, leave=1 << 19)
    with pytest.raises(ResourceExhaustedError, match=r"new work is accepted again when there is space") as refused:
        room_for_work(settings).check()
    assert refused.value.reason == "STORAGE_FULL"
    storage.put("blobs/result", b"of what was accepted")
    assert [stored.key for stored in storage.directories("checkpoints")] == [LOCATION]
    assert len(storage.read(LOCATION, "weights", 0, 1 << 20)) == 1 << 20
    storage.delete_directory(LOCATION)
    room_for_work(settings).check()


def test_without_a_setting_the_reserve_is_a_share_of_the_disk(disk: Path) -> None:
    settings = Settings(data_dir=disk)
    fill(disk, leave=1 << 19)
    room_for_work(settings).check()
    fill(disk, leave=1 << 17)
    with pytest.raises(ResourceExhaustedError):
        room_for_work(settings).check()
