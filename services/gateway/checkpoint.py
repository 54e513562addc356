"""tinker.v1.CheckpointService: reads and deletes checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.core.catalog import StoredCheckpoint
from services.core.errors import InvalidArgumentError
from services.core.server import Context
from services.gateway.auth import Authenticator
from services.gateway.checkpoint_files import CheckpointFiles
from services.gateway.paging import page_bounds
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from services.gateway.validation.fields import parse_path
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, checkpoint_pb2_grpc, operation_pb2

DEFAULT_CHECKPOINTS_PER_PAGE = 100


class CheckpointServicer(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Checkpoints of the caller's tenant."""

    def __init__(self, stores: Stores, auth: Authenticator, submission: Submission) -> None:
        self._stores = stores
        self._auth = auth
        self._files = CheckpointFiles(stores, submission)

    async def GetCheckpoint(
        self, request: checkpoint_pb2.GetCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """A checkpoint."""
        tenant = await self._auth.tenant(context)
        return (await self._stored(request.tinker_path, tenant)).checkpoint

    async def ListCheckpoints(
        self, request: checkpoint_pb2.ListCheckpointsRequest, context: Context
    ) -> checkpoint_pb2.ListCheckpointsResponse:
        """The tenant's checkpoints, or one run's, newest first."""
        tenant = await self._auth.tenant(context)
        size, start = page_bounds(request.page_size, request.page_token, DEFAULT_CHECKPOINTS_PER_PAGE)
        if request.training_run_id:
            await self._stores.catalog.run(request.training_run_id, tenant)
        found, page = await self._stores.catalog.checkpoint_page(tenant, request.training_run_id, size, start)
        return checkpoint_pb2.ListCheckpointsResponse(
            checkpoints=found, next_page_token=page.next_page_token, total_size=page.total_size
        )

    async def DeleteCheckpoint(
        self, request: checkpoint_pb2.DeleteCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """Takes a checkpoint out of the catalog, then off the disk."""
        tenant = await self._auth.tenant(context)
        stored = await self._stored(request.tinker_path, tenant)
        await self._stores.catalog.remove_checkpoint(TinkerPath.parse(stored.checkpoint.tinker_path), tenant)
        await asyncio.to_thread(self._stores.checkpoints.delete, stored.location)
        return stored.checkpoint

    async def ListCheckpointFiles(
        self, request: checkpoint_pb2.ListCheckpointFilesRequest, context: Context
    ) -> checkpoint_pb2.ListCheckpointFilesResponse:
        """A checkpoint as a PEFT directory."""
        stored = await self._stored(request.tinker_path, await self._auth.tenant(context))
        return checkpoint_pb2.ListCheckpointFilesResponse(files=await self._files.of_checkpoint(stored))

    async def ReadFile(
        self, request: checkpoint_pb2.ReadFileRequest, context: Context
    ) -> AsyncIterator[checkpoint_pb2.ReadFileResponse]:
        """A file of a checkpoint or of a finished merge, from any offset on."""
        tenant = await self._auth.tenant(context)
        if request.WhichOneof("source") == "operation":
            pieces = self._files.read_export(request.operation, tenant, request.name, request.offset)
        else:
            stored = await self._stored(request.tinker_path, tenant)
            pieces = self._files.read_checkpoint(stored, request.name, request.offset)
        async for piece in pieces:
            yield checkpoint_pb2.ReadFileResponse(content=piece)

    async def UploadFile(
        self, requests: AsyncIterator[checkpoint_pb2.UploadFileRequest], context: Context
    ) -> checkpoint_pb2.UploadFileResponse:
        """Stores a file for an import."""
        upload_id = await self._files.upload(await self._auth.tenant(context), requests)
        return checkpoint_pb2.UploadFileResponse(upload_id=upload_id)

    async def ImportCheckpoint(
        self, request: checkpoint_pb2.ImportCheckpointRequest, context: Context
    ) -> operation_pb2.Operation:
        """Queues the creation of a run from an uploaded adapter."""
        return await self._files.import_checkpoint(await self._auth.tenant(context), request)

    async def _stored(self, path: str, tenant: str) -> StoredCheckpoint:
        parsed = parse_path("tinker_path", path)
        if parsed.kind is None:
            message = (
                f"{path} leaves open which checkpoint is meant; allowed are .../weights/... and .../sampler_weights/..."
            )
            raise InvalidArgumentError.at("tinker_path", message, reason="BAD_TINKER_PATH")
        return await self._stores.catalog.checkpoint(parsed, tenant)
