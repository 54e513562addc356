"""Uploads whose call ends at the wrong moment."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.core.storage.local import LocalStorage
from services.core.storage.uploads import CONFIG_FILE, UploadStore
from tinker_proto.v1 import checkpoint_pb2


class PipeStorage(LocalStorage):
    """Its new files are pipes, which open only once somebody reads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.pipe: Path | None = None

    @contextmanager
    def write_file(self, key: str) -> Iterator[Path]:
        with super().write_file(key) as path:
            path.unlink()
            os.mkfifo(path)
            self.pipe = path
            yield path


async def no_pieces() -> AsyncIterator[bytes]:
    raise AssertionError
    yield b""


async def test_a_call_that_ends_while_its_file_is_being_opened_leaves_nothing(tmp_path: Path) -> None:
    storage = PipeStorage(tmp_path)
    file = checkpoint_pb2.File(name=CONFIG_FILE, size_bytes=2, sha256=hashlib.sha256(b"{}").hexdigest())
    call = asyncio.create_task(UploadStore(storage, max_bytes=100).receive("tenant", file, no_pieces()))
    async with asyncio.timeout(60):
        while storage.pipe is None:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0)
        reader = os.open(storage.pipe, os.O_RDONLY | os.O_NONBLOCK)
        await asyncio.wait([call])
    assert call.cancelled()
    assert os.read(reader, 1) == b"", "nobody has it open for writing"
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    os.close(reader)
