"""Transfers of files: downloads of checkpoints and exports, and uploads of adapters.

A download is described first (size and SHA-256 of every file), then streamed from any offset: a client can resume it
after an interruption and verify what it has. An upload is bounded, named and checked before it is stored.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from services.core.catalog.checkpoints import StoredCheckpoint
from services.core.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    broken_rule,
    quoted,
)
from services.core.names import OperationName, training_run_id
from services.core.process.workers import registered
from services.core.storage.checkpoint_store import AGE_SUFFIX
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from services.gateway.validation.fields import (
    check_checkpoint_name,
    check_metadata,
    check_range,
    check_seq_id,
    check_ttl,
)
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import checkpoint_pb2, operation_pb2, sampling_pb2

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_DOWNLOADED = {*ADAPTER_FILES, *(f"{name}{AGE_SUFFIX}" for name in ADAPTER_FILES)}
"""A PEFT adapter directory; a checkpoint has more, which is the platform's own."""

PIECE_BYTES = 1 << 20
BLOCK_BYTES = 8 << 20
"""Read from the storage at once: a remote one takes a request for each."""


Read = Callable[[int, int], bytes]
"""(start, length) to at most so many bytes."""


class CheckpointFiles:
    """Reads and takes files for one tenant at a time; whose they are is checked by the caller where it says so."""

    def __init__(self, stores: Stores, submission: Submission) -> None:
        self._stores = stores
        self._submission = submission

    async def of_checkpoint(self, stored: StoredCheckpoint) -> list[checkpoint_pb2.File]:
        """The files of a checkpoint, which the tenant may read, as a PEFT directory; they may be encrypted."""
        files = await asyncio.to_thread(self._stores.checkpoints.files, stored.location)
        return [file for file in files if file.name in _DOWNLOADED]

    async def read_checkpoint(self, stored: StoredCheckpoint, name: str, offset: int) -> AsyncIterator[bytes]:
        """A file of a checkpoint, which the tenant may read, from `offset` on."""
        file = _named(await self.of_checkpoint(stored), name)

        def read(start: int, length: int) -> bytes:
            return self._stores.checkpoints.read(stored.location, name, start, length)

        async for piece in _pieces(read, file, offset):
            yield piece

    async def read_export(self, operation: str, tenant: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """A file that a merge has written, from `offset` on.

        Raises:
            NotFoundError: the tenant has no such operation, or it has no such file.
            InvalidArgumentError: the operation writes no files.
            FailedPreconditionError: the operation has not succeeded.
        """
        found = await self._stores.operations.get(str(OperationName.parse(operation)), tenant)
        file = _named(_exported(found), name)

        def read(start: int, length: int) -> bytes:
            return self._stores.exports.read(found.name, name, start, length)

        async for piece in _pieces(read, file, offset):
            yield piece

    async def upload(self, tenant: str, requests: AsyncIterator[checkpoint_pb2.UploadFileRequest]) -> str:
        """Stores a file; returns its id."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "file":
            raise InvalidArgumentError.at("file", "required in the first message")
        return await self._stores.uploads.receive(tenant, first.file, _contents(requests))

    async def import_checkpoint(
        self, tenant: str, request: checkpoint_pb2.ImportCheckpointRequest
    ) -> operation_pb2.Operation:
        """Queues the creation of a run from an uploaded adapter."""
        await self._stores.sessions.open(request.session_id, tenant)
        check_seq_id("training_run_seq_id", request.training_run_seq_id, 0)
        check_checkpoint_name("name", request.name)
        check_metadata("user_metadata", request.user_metadata)
        check_ttl("ttl_seconds", request)
        limits = await self._stores.workers.serving(request.base_model, job_pb2.WORKER_KIND_TRAINER, "base_model")
        request.base_model = registered(request.base_model, limits)
        await self._check_uploads(tenant, request, limits)
        run_id = training_run_id(request.session_id, request.training_run_seq_id)
        await self._stores.catalog.check_run(tenant, run_id)
        return await self._submission.import_checkpoint(tenant, request)

    async def _check_uploads(
        self, tenant: str, request: checkpoint_pb2.ImportCheckpointRequest, limits: job_pb2.WorkerStatus
    ) -> None:
        uploads = self._stores.uploads
        ids = {"config_upload_id": CONFIG_FILE, "weights_upload_id": WEIGHTS_FILE}
        for field, name in ids.items():
            upload_id = getattr(request, field)
            if not await asyncio.to_thread(uploads.has, tenant, upload_id, name):
                rule = f"an upload of {name} of the last 24 hours"
                raise InvalidArgumentError.must_be(field, rule, quoted(upload_id), reason="UPLOAD_NOT_FOUND")
        config = await asyncio.to_thread(uploads.open, tenant, request.config_upload_id, CONFIG_FILE)
        await asyncio.to_thread(_check_ranks, config, limits.max_lora_rank)


def _named(files: list[checkpoint_pb2.File], name: str) -> checkpoint_pb2.File:
    for file in files:
        if file.name == name:
            return file
    known = ", ".join(file.name for file in files)
    raise NotFoundError(f"there is no file {name[:100]!r}; there are {known}", reason="FILE_NOT_FOUND")


def _exported(operation: operation_pb2.Operation) -> list[checkpoint_pb2.File]:
    if operation.method != "MergeWeights":
        got = f"{operation.name}, which is a {operation.method}"
        raise InvalidArgumentError.must_be("operation", "a MergeWeights", got)
    response = sampling_pb2.MergeWeightsResponse()
    if not operation.response.Unpack(response):
        state = operation_pb2.OperationState.Name(operation.state)
        message = f"operation {operation.name} has no files: it is {state.removeprefix('OPERATION_STATE_')}"
        raise FailedPreconditionError(message, reason="NOT_SUCCEEDED")
    return list(response.files)


async def _pieces(read: Read, file: checkpoint_pb2.File, offset: int) -> AsyncIterator[bytes]:
    check_range("offset", offset, 0, file.size_bytes)
    while offset < file.size_bytes:
        block = await asyncio.to_thread(read, offset, BLOCK_BYTES)
        if not block:
            raise DataLossError(f"{file.name} ends at byte {offset} of {file.size_bytes}", reason="FILE_TRUNCATED")
        for start in range(0, len(block), PIECE_BYTES):
            yield block[start : start + PIECE_BYTES]
        offset += len(block)


async def _contents(requests: AsyncIterator[checkpoint_pb2.UploadFileRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "content":
            raise InvalidArgumentError.at("content", "required in every message after the first")
        yield request.content


def _check_ranks(config: Path, max_rank: int) -> None:
    """Refuses an adapter that no trainer would hold, before anything of it is read.

    Raises:
        InvalidArgumentError: the configuration has no rank, or one above the trainers' limit.
    """
    try:
        content = json.loads(config.read_bytes())
        ranks = [("r", content["r"])]
        ranks += [(f"rank_pattern[{key!r}]", rank) for key, rank in (content.get("rank_pattern") or {}).items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        ranks = [("r", None)]
    for option, rank in ranks:
        if not isinstance(rank, int | float) or not 1 <= rank <= max_rank:
            message = f"{option[:200]} of {CONFIG_FILE} {broken_rule(f'from 1 to {max_rank}', quoted(rank))}"
            raise InvalidArgumentError.at("config_upload_id", message, reason="BAD_ADAPTER")
