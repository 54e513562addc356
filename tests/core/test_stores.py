"""Checkpoints and blobs: whole or not at all, and gone when they should be."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from services.core.errors import AlreadyExistsError, DataLossError, NotFoundError
from services.core.queue.payloads import Payloads
from services.core.storage.blobs import INLINE_LIMIT_BYTES, BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.local import LocalStorage

LOCATION = "run:train:0/weights/a/5"


def test_a_checkpoint_is_visible_only_when_it_is_whole(tmp_path: Path) -> None:
    store = CheckpointStore(LocalStorage(tmp_path))
    with store.write(LOCATION) as directory:
        (directory / "weights").write_bytes(b"x" * 100)
        assert not store.exists(LOCATION)
    assert store.exists(LOCATION)
    assert (store.open(LOCATION) / "weights").read_bytes() == b"x" * 100
    assert store.size_bytes(LOCATION) == 100


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = CheckpointStore(LocalStorage(tmp_path))

    def fill_the_disk() -> None:
        with store.write(LOCATION) as directory:
            (directory / "weights").write_bytes(b"x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_the_disk()
    assert not store.exists(LOCATION)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_checkpoint_never_changes(tmp_path: Path) -> None:
    store = CheckpointStore(LocalStorage(tmp_path))
    with store.write(LOCATION):
        pass
    with pytest.raises(AlreadyExistsError), store.write(LOCATION):
        pass


def test_a_deleted_checkpoint_is_gone_and_deleting_again_is_no_error(tmp_path: Path) -> None:
    store = CheckpointStore(LocalStorage(tmp_path))
    with store.write(LOCATION) as directory:
        (directory / "weights").write_bytes(b"x")
    store.delete(LOCATION)
    store.delete(LOCATION)
    with pytest.raises(NotFoundError):
        store.open(LOCATION)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size", [0, 10, INLINE_LIMIT_BYTES, INLINE_LIMIT_BYTES + 1, 1_000_000])
async def test_payloads_round_trip_and_large_ones_stay_outside(tmp_path: Path, size: int) -> None:
    payloads = Payloads(BlobStore(LocalStorage(tmp_path)))
    content = os.urandom(size)
    packed = await payloads.pack("jobs", content)
    assert await payloads.unpack(packed) == content
    assert len(packed) <= INLINE_LIMIT_BYTES + 1
    await payloads.discard(packed)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    blobs = BlobStore(LocalStorage(tmp_path))
    reference = await blobs.put("results", b"x")
    await blobs.delete(reference)
    with pytest.raises(DataLossError, match=reference):
        await blobs.get(reference)


async def test_only_days_that_nothing_refers_to_are_swept(tmp_path: Path) -> None:
    blobs = BlobStore(LocalStorage(tmp_path))
    kept = await blobs.put("results", b"new")
    old = tmp_path / "blobs" / "results" / "2020-01-01"
    old.mkdir()
    (old / "blob").write_bytes(b"old")
    assert await blobs.sweep("results", timedelta(hours=24)) == 1
    assert not (old / "blob").exists()
    assert await blobs.get(kept) == b"new"


async def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    blobs = BlobStore(LocalStorage(tmp_path))
    assert await blobs.put_once("tokenizers", b"same") == await blobs.put_once("tokenizers", b"same")
