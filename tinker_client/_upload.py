"""Adapters on this machine, and their way to the platform.

Only two regular files are ever read and sent: adapter_config.json and adapter_model.safetensors. A directory with a
link or a device in it is refused as a whole, because what it would send is not what it seems to hold. Links of a
snapshot in the Hugging Face cache are taken for what they are, as long as they end in the same repository's blobs.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tinker_client import _convert
from tinker_client._connection import Connection
from tinker_client._download import ReportBytes, sha256_of
from tinker_client._hub_cache import blob_of
from tinker_client._transport import Transport
from tinker_proto.v1 import checkpoint_pb2

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterFiles:
    """A PEFT adapter's two files, wherever they are and whatever they are called."""

    config: Path
    weights: Path

    @classmethod
    def find(cls, path: str | Path, config: str | Path | None = None) -> AdapterFiles:
        """The files of an adapter directory, or a .safetensors file with its configuration beside it or given.

        Raises:
            ValueError: it is neither, or has a link or anything else in it that is not a plain file or directory.
            FileNotFoundError: a file is missing.
        """
        path = Path(path)
        if path.is_dir() and config is None:
            for entry in sorted(path.iterdir()):
                if not stat.S_ISDIR(entry.lstat().st_mode):
                    _plain(entry)
            found = cls(path / CONFIG_FILE, path / WEIGHTS_FILE)
        elif path.suffix == ".safetensors":
            found = cls(Path(config) if config is not None else path.parent / CONFIG_FILE, path)
        else:
            raise ValueError(f"{path} is neither an adapter's directory nor a .safetensors file")
        return cls(_plain(found.config), _plain(found.weights))


async def upload(transport: Transport, files: AdapterFiles, report: ReportBytes | None) -> tuple[str, str]:
    """Sends an adapter's files; returns the upload ids of configuration and weights."""
    named = ((CONFIG_FILE, files.config), (WEIGHTS_FILE, files.weights))
    described = [await asyncio.to_thread(_describe, name, path) for name, path in named]
    total_bytes = sum(file.size_bytes for file in described)
    before, ids = 0, []
    for file, (_, path) in zip(described, named, strict=True):
        ids.append(await _send(transport, file, path, _reporter(report, before, total_bytes)))
        before += file.size_bytes
    return ids[0], ids[1]


def import_request(
    base_model: str,
    name: str,
    user_metadata: Mapping[str, str] | None,
    rename_base_model: bool,
    ttl_seconds: int | None,
) -> checkpoint_pb2.ImportCheckpointRequest:
    """What to import, but for whose it is and what it has."""
    with _convert.naming("import_checkpoint"):
        return checkpoint_pb2.ImportCheckpointRequest(
            base_model=base_model,
            rename_base_model=rename_base_model,
            name=name,
            ttl_seconds=ttl_seconds,
            user_metadata=user_metadata,
        )


async def import_adapter(
    connection: Connection,
    files: AdapterFiles,
    request: checkpoint_pb2.ImportCheckpointRequest,
    report: ReportBytes | None,
) -> checkpoint_pb2.ImportCheckpointResponse:
    """Uploads an adapter and has the platform make a run of it; `request` says all but whose it is and what it has."""
    session = await connection.session()
    request.config_upload_id, request.weights_upload_id = await upload(session.transport, files, report)
    request.session_id = session.session_id
    request.training_run_seq_id = next(session.training_run_seq_ids)
    return await session.carry_out(
        f"{session.session_id}:train:{request.training_run_seq_id}:0",
        session.transport.checkpoints.ImportCheckpoint,
        request,
        checkpoint_pb2.ImportCheckpointResponse,
        slot=nullcontext(),
    )


def _plain(path: Path) -> Path:
    """The plain file at a path, or that a link in a snapshot of the Hugging Face cache stands for."""
    is_link = path.is_symlink()
    file = (blob_of(path) or path) if is_link else path
    if stat.S_ISREG(file.lstat().st_mode):
        return file
    kind, advice = "not a plain file", ""
    if is_link:
        kind, advice = "a link", "; `hf download NAME --local-dir DIR` writes plain files"
    raise ValueError(f"{path} is {kind}; an adapter's directory has plain files only{advice}")


def _describe(name: str, path: Path) -> checkpoint_pb2.File:
    return checkpoint_pb2.File(name=name, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def _reporter(report: ReportBytes | None, before: int, total_bytes: int) -> Callable[[int], None]:
    def sent(size_bytes: int) -> None:
        if report is not None:
            report(before + size_bytes, total_bytes)

    return sent


async def _send(transport: Transport, file: checkpoint_pb2.File, path: Path, sent: Callable[[int], None]) -> str:
    async def requests() -> AsyncIterator[checkpoint_pb2.UploadFileRequest]:
        yield checkpoint_pb2.UploadFileRequest(file=file)
        size_bytes = 0
        while content := await asyncio.to_thread(_next_block, path, size_bytes):
            yield checkpoint_pb2.UploadFileRequest(content=content)
            size_bytes += len(content)
            sent(size_bytes)

    return (await transport.send(transport.checkpoints.UploadFile, requests)).upload_id


def _next_block(path: Path, start: int) -> bytes:
    """What comes next of a file, which is open for this alone: nobody ends the requests of a call that was refused."""
    with open(path, "rb") as source:
        source.seek(start)
        return source.read(_BLOCK_BYTES)
