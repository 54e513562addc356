"""Files from the platform into a directory: resumed where they stopped, verified, and never over anything else.

A file grows under a hidden name that has its content's digest, and gets its own name once all of it is there and its
SHA-256 is right. What is there already with the right content is not fetched again; other content is not touched.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc

from tinker_client._file_name import check_file_name
from tinker_client._transport import Transport
from tinker_client.errors import TinkerError
from tinker_proto.v1 import checkpoint_pb2

ReportBytes = Callable[[int, int], None]
"""Called with (bytes that are here, bytes in all), on the client's own thread: it must return soon."""

MakeRequest = Callable[[str, int], checkpoint_pb2.ReadFileRequest]
"""(file name, offset) to the request for it."""


async def download(
    transport: Transport,
    files: Sequence[checkpoint_pb2.File],
    directory: Path,
    request: MakeRequest,
    report: ReportBytes | None,
) -> Path:
    """Makes `directory` have all files, and returns it.

    Raises:
        FileExistsError: a file of one of the names is there with other content; nothing was fetched.
        TinkerError: a file that arrived is not what it should be; names it.
    """
    for file in files:
        check_file_name(file.name)
    present = await asyncio.to_thread(_present, files, directory)
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    progress = _Progress(sum(file.size_bytes for file in files), report)
    for file in files:
        if file.name in present:
            progress.add(file.size_bytes)
        else:
            await _fetch(transport, file, directory, request, progress)
    return directory


class _Progress:
    def __init__(self, total_bytes: int, report: ReportBytes | None) -> None:
        self._done_bytes, self._total_bytes, self._report = 0, total_bytes, report

    def add(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        if self._report is not None:
            self._report(self._done_bytes, self._total_bytes)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _present(files: Sequence[checkpoint_pb2.File], directory: Path) -> set[str]:
    """Names of the files that are there with the right content."""
    present = set()
    for file in files:
        path = directory / file.name
        for folder in (directory / parent for parent in Path(file.name).parents if parent.name):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise _other_content(folder)
        if not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_file() or sha256_of(path) != file.sha256:
            raise _other_content(path)
        present.add(file.name)
    return present


def _other_content(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} has other content; choose another directory, or move it away")


async def _fetch(
    transport: Transport, file: checkpoint_pb2.File, directory: Path, request: MakeRequest, progress: _Progress
) -> None:
    target = directory / file.name
    partial = target.with_name(f".{target.name}.{file.sha256[:16]}.part")
    await asyncio.to_thread(partial.parent.mkdir, parents=True, exist_ok=True)
    offset = await asyncio.to_thread(_size_of, partial)
    progress.add(offset)
    if offset < file.size_bytes:
        async for content in _contents(transport, file, offset, request):
            await asyncio.to_thread(_write, partial, offset, content)
            offset += len(content)
            progress.add(len(content))
    if await asyncio.to_thread(sha256_of, partial) != file.sha256:
        await asyncio.to_thread(partial.unlink)
        raise TinkerError(
            f"{file.name} did not arrive as it was written: its SHA-256 is not {file.sha256}. Try again; if it comes "
            "again, the platform's copy is damaged"
        )
    await asyncio.to_thread(partial.rename, target)


def _size_of(partial: Path) -> int:
    """How much of a file is here; afterwards there is at least an empty one."""
    with open(partial, "ab") as target:
        return target.tell()


def _write(partial: Path, offset: int, content: bytes) -> None:
    """Writes `content` at `offset` and closes the file, so that a cancelled download leaves no open handle."""
    with open(partial, "r+b") as target:
        target.seek(offset)
        target.write(content)


async def _contents(
    transport: Transport, file: checkpoint_pb2.File, offset: int, request: MakeRequest
) -> AsyncIterator[bytes]:
    """The bytes of a file from `offset` on, also over outages."""
    outage = transport.outage()
    while offset < file.size_bytes:
        try:
            async for message in transport.stream(transport.checkpoints.ReadFile, request(file.name, offset)):
                outage.end()
                offset += len(message.content)
                yield message.content
        except grpc.aio.AioRpcError as error:
            await asyncio.sleep(outage.pause_after(error))
        else:
            if offset < file.size_bytes:
                raise TinkerError(f"{file.name} ended at byte {offset} of {file.size_bytes}")
