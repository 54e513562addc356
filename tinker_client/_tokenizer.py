"""The tokenizer of a base model, from the platform itself: no access to the model is needed.

The files are kept in the user's cache directory under a name that is their content's digest, so they are written once
and a changed tokenizer is another directory. transformers is imported when it is called for.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from tinker_client._connection import Connection
from tinker_client._file_name import check_file_name
from tinker_client._fork import ForkSafeLock
from tinker_proto.v1 import capability_pb2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_loaded: dict[tuple[str, str], PreTrainedTokenizerBase] = {}
_lock = ForkSafeLock()


def get_tokenizer(connection: Connection, base_model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `base_model`; fetched and loaded once per process."""
    key = (str(connection.transport.address), base_model)
    with _lock:
        if key not in _loaded:
            _loaded[key] = _load(store(connection.loop.run(_fetch(connection, base_model)), cache_directory()))
        return _loaded[key]


async def get_tokenizer_async(connection: Connection, base_model: str) -> PreTrainedTokenizerBase:
    """`get_tokenizer`, in a thread."""
    return await asyncio.to_thread(get_tokenizer, connection, base_model)


def cache_directory() -> Path:
    """Where tokenizers are kept: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinker-platform" / "tokenizers"


def store(files: Mapping[str, bytes], root: Path) -> Path:
    """Writes files into the directory under `root` that belongs to their content, if they are not there yet.

    The directory appears whole or not at all, also when several processes write it.
    """
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        check_file_name(name)
        digest.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    directory = root / digest.hexdigest()
    if directory.exists():
        return directory
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".new-", ignore_cleanup_errors=True) as temporary:
        whole = Path(temporary) / "files"
        whole.mkdir()
        for name, content in files.items():
            path = whole / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            whole.rename(directory)
        except OSError:
            if not directory.exists():
                raise
    return directory


async def _fetch(connection: Connection, base_model: str) -> dict[str, bytes]:
    transport = connection.transport
    request = capability_pb2.GetTokenizerRequest(base_model=base_model)
    outage = transport.outage()
    while True:
        try:
            return {
                file.file_name: file.content
                async for file in transport.stream(transport.capabilities.GetTokenizer, request)
            }
        except grpc.aio.AioRpcError as error:
            await asyncio.sleep(outage.pause_after(error))


def _load(directory: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer
