"""Storage: whole or not at all, verified, and clear about what is wrong; in a directory and in a real S3 server."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from services.core.config import Settings
from services.core.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.core.storage.blobs import BlobStore
from services.core.storage.cache import StorageCache
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.interface import Storage
from services.core.storage.local import LocalStorage
from services.core.storage.open import open_storage
from services.core.storage.s3 import CONTENTS, S3Storage
from tests.core.s3_server import BUCKET, S3Server, serving_s3

KEY = "checkpoints/s:train:0/weights/a/5"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    opened = open_storage(Settings(storage_url=f"s3://{BUCKET}/{tmp_path.name}", data_dir=tmp_path))
    assert isinstance(opened, S3Storage)
    return opened


@pytest.fixture
def bucket(s3: S3Storage, tmp_path: Path) -> S3Store:
    """The same objects, seen past the storage."""
    return S3Store(BUCKET, prefix=tmp_path.name, client_options={"allow_http": True})


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        opened: Storage = request.getfixturevalue("s3")
        return opened
    return open_storage(Settings(data_dir=tmp_path / "data"))


def _write(storage: Storage, key: str = KEY, **files: bytes) -> None:
    with storage.write_directory(key) as directory:
        for name, content in (files or {"weights": b"x" * 100, "config": b"{}"}).items():
            (directory / name).write_bytes(content)


def test_a_directory_is_visible_once_it_is_whole(storage: Storage) -> None:
    with storage.write_directory(KEY) as directory:
        (directory / "weights").write_bytes(b"0123456789")
        assert not storage.has_directory(KEY)
    assert storage.has_directory(KEY)
    assert storage.directory_sizes(KEY) == {"weights": 10}
    assert (storage.open_directory(KEY) / "weights").read_bytes() == b"0123456789"
    assert storage.read(KEY, "weights", 4, 3) == b"456"
    assert storage.read(KEY, "weights", 8, 100) == b"89"
    assert storage.read(KEY, "weights", 10, 100) == b""
    assert [(stored.key, stored.size_bytes) for stored in storage.directories("checkpoints")] == [(KEY, 10)]


def test_a_write_that_fails_is_never_seen(storage: Storage) -> None:
    def fail() -> None:
        with storage.write_directory(KEY) as directory:
            (directory / "weights").write_bytes(b"x")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert not storage.has_directory(KEY)
    assert list(storage.directories("checkpoints")) == []
    with pytest.raises(FileNotFoundError):
        storage.open_directory(KEY)


def test_of_two_writers_at_once_one_wins_and_the_other_is_told(storage: Storage) -> None:
    inside, told = threading.Barrier(2, timeout=60), []

    def write(content: bytes) -> None:
        try:
            with storage.write_directory(KEY) as directory:
                inside.wait()
                (directory / "weights").write_bytes(content)
                (directory / "config").write_bytes(content)
        except AlreadyExistsError:
            told.append(content)

    writers = [threading.Thread(target=write, args=(content,)) for content in (b"one", b"two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (lost,) = told
    won = {b"one", b"two"} - {lost}
    directory = storage.open_directory(KEY)
    assert {(directory / name).read_bytes() for name in ("weights", "config")} == won
    assert list(storage.leftovers(timedelta(0))) == []


def test_what_exists_is_never_written_again(storage: Storage) -> None:
    _write(storage)
    with pytest.raises(AlreadyExistsError):
        _write(storage)


def test_what_is_deleted_is_gone(storage: Storage) -> None:
    _write(storage)
    _write(storage, f"{KEY}6")
    storage.delete_directory(KEY)
    storage.delete_directory(KEY)
    assert not storage.has_directory(KEY)
    assert storage.has_directory(f"{KEY}6")
    storage.put("blobs/a", b"a")
    storage.put("blobs/a", b"b")
    assert (storage.get("blobs/a"), storage.open_file("blobs/a").read_bytes()) == (b"b", b"b")
    assert [storage.get_part("blobs/a", *part) for part in ((0, 9), (0, 1), (1, 9), (5, 1))] == [b"b", b"b", b"", b""]
    storage.delete_file("blobs/a")
    storage.delete_file("blobs/a")
    assert not storage.has_file("blobs/a")
    with pytest.raises(FileNotFoundError):
        storage.get("blobs/a")


def test_no_empty_directory_is_left_and_none_that_goes_is_written_to(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def write_and_delete(name: str) -> None:
        for _ in range(40):
            _write(storage, f"checkpoints/run/weights/a/{name}", weights=b"x")
            storage.delete_directory(f"checkpoints/run/weights/a/{name}")
            storage.put(f"blobs/jobs/day/{name}", b"x")
            with storage.write_file(f"blobs/jobs/day/{name}-in-pieces") as path:
                path.write_bytes(b"x")
            storage.delete_file(f"blobs/jobs/day/{name}")
            storage.delete_file(f"blobs/jobs/day/{name}-in-pieces")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write_and_delete, "abcd"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["blobs", "checkpoints"]


@pytest.mark.parametrize("obstacle", ["file", "link to nowhere"])
def test_what_stands_in_the_way_of_a_directory_is_named(tmp_path: Path, obstacle: str) -> None:
    storage = LocalStorage(tmp_path)
    if obstacle == "file":
        (tmp_path / "blobs").write_bytes(b"x")
    else:
        (tmp_path / "blobs").symlink_to(tmp_path / "unmounted")
    for key in ("blobs/one", "blobs/jobs/day/one"):
        with pytest.raises(OSError, match="blobs"):
            storage.put(key, b"x")


def test_a_file_written_in_pieces_appears_at_its_end(storage: Storage) -> None:
    big = bytes(range(256)) * 50_000  # several parts of an upload
    with storage.write_file("uploads/day/big") as path:
        path.write_bytes(big)
        assert not storage.has_file("uploads/day/big")
    assert storage.open_file("uploads/day/big").read_bytes() == big
    assert [(stored.key, stored.size_bytes) for stored in storage.files("uploads")] == [("uploads/day/big", len(big))]


def test_what_a_killed_writer_left_is_found_and_removed(storage: Storage, tmp_path: Path) -> None:
    _write(storage)
    killed = storage.write_directory(f"{KEY}7")
    (killed.__enter__() / "weights").write_bytes(b"half")
    if isinstance(storage, S3Storage):
        store = S3Store(BUCKET, prefix=tmp_path.name, client_options={"allow_http": True})
        obstore.put(store, f"{KEY}7/0123/weights", b"half")
    assert list(storage.leftovers(timedelta(hours=1))) == []
    (found,) = storage.leftovers(timedelta(0))
    assert found.size_bytes == 4
    storage.delete_leftover(found.key)
    assert list(storage.leftovers(timedelta(0))) == []
    assert [stored.key for stored in storage.directories("checkpoints")] == [KEY]


@pytest.mark.parametrize("damage", ["corrupted", "missing"])
def test_s3_damage_is_found_by_name_when_a_directory_is_opened(s3: S3Storage, bucket: S3Store, damage: str) -> None:
    _write(s3)
    (path,) = [item["path"] for page in obstore.list(bucket, KEY) for item in page if item["path"].endswith("weights")]
    if damage == "missing":
        obstore.delete(bucket, path)
    else:
        obstore.put(bucket, path, b"y" * 100)
    with pytest.raises(DataLossError, match=f"weights is {damage}"):
        s3.open_directory(KEY)


def test_s3_has_a_directory_exactly_when_its_contents_are_there(s3: S3Storage, bucket: S3Store) -> None:
    _write(s3)
    obstore.delete(bucket, f"{KEY}/{CONTENTS}")
    assert not s3.has_directory(KEY)
    assert len(list(s3.leftovers(timedelta(0)))) == 2


async def test_a_damaged_blob_is_named(storage: Storage) -> None:
    blobs = BlobStore(storage)
    reference = await blobs.put("results", b"whole")
    assert await blobs.get(reference) == b"whole"
    storage.put(f"blobs/{reference}", b"whol")
    with pytest.raises(DataLossError, match=reference):
        await blobs.get(reference)


def test_a_server_that_is_gone_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_s3() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        server.process.kill()
        server.process.wait()
        storage = S3Storage(f"s3://{BUCKET}", tmp_path)
        with pytest.raises(UnavailableError, match=r"storage cannot be reached.*blobs/a"):
            storage.put("blobs/a", b"a")


@contextmanager
def _files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to write more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_typed_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    _write(storage)
    full = pytest.raises(ResourceExhaustedError, match=r"storage is full.*was not written")
    with _files_no_larger_than(1000):
        with full as caught:
            _write(storage, f"{KEY}6", weights=b"x" * 2000)
        assert caught.value.reason == "STORAGE_FULL"
        with full:
            storage.put("blobs/a", b"x" * 2000)
    assert [stored.key for stored in storage.directories("checkpoints")] == [KEY]
    assert not storage.has_file("blobs/a")
    assert list(storage.leftovers(timedelta(0))) == []
    CheckpointStore(storage).open(KEY.removeprefix("checkpoints/"))


@pytest.mark.parametrize("url", ["s3://", "gs://bucket", "file://host/x", "file:relative", "{directory}", "s3://b?x=1"])
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="storage_url"):
        open_storage(Settings(storage_url=url.format(directory=tmp_path), data_dir=tmp_path))


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    open_storage(Settings(storage_url=f"file://{tmp_path}/shared", data_dir=tmp_path)).put("blobs/a", b"a")
    assert (tmp_path / "shared/blobs/a").read_bytes() == b"a"


def test_the_cache_drops_the_least_recently_opened_and_nothing_in_use(tmp_path: Path) -> None:
    def download(path: Path) -> None:
        path.write_bytes(b"x" * 40)

    cache = StorageCache(tmp_path / "a", limit_bytes=100, in_use=timedelta(0))
    paths = [cache.opened(name, download) for name in ("a", "b")]
    cache.opened("a", download)
    cache.opened("c", download)
    assert [path.exists() for path in paths] == [True, False]
    busy = StorageCache(tmp_path / "b", limit_bytes=100, in_use=timedelta(hours=1))
    assert all(path.exists() for path in [busy.opened(name, download) for name in "abc"])
