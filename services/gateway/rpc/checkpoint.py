"""tinker.v1.CheckpointService: reads, shares, limits and deletes checkpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.core.catalog.checkpoints import StoredCheckpoint
from services.core.process.server import Context
from services.gateway.rpc.auth import Authenticator
from services.gateway.rpc.paging import fitting, page_request
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from services.gateway.transfers import CheckpointFiles
from services.gateway.validation.fields import check_ttl, parse_path
from tinker_proto.v1 import checkpoint_pb2, checkpoint_pb2_grpc, operation_pb2

DEFAULT_CHECKPOINTS_PER_PAGE = 100


class CheckpointServicer(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Checkpoints of the caller's tenant, and for reading those that others have published."""

    def __init__(self, stores: Stores, auth: Authenticator, submission: Submission) -> None:
        self._stores = stores
        self._checkpoints = stores.catalog.checkpoints
        self._auth = auth
        self._files = CheckpointFiles(stores, submission)

    async def GetCheckpoint(
        self, request: checkpoint_pb2.GetCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """A checkpoint."""
        return (await self._stored(request.tinker_path, await self._auth.tenant(context))).checkpoint

    async def ListCheckpoints(
        self, request: checkpoint_pb2.ListCheckpointsRequest, context: Context
    ) -> checkpoint_pb2.ListCheckpointsResponse:
        """The tenant's checkpoints, or those of one of its runs, newest first."""
        tenant = await self._auth.tenant(context)
        requested = page_request(request.page_size, request.page_token, DEFAULT_CHECKPOINTS_PER_PAGE)
        found, page = await self._stores.catalog.checkpoint_page(tenant, request.training_run_id, requested)
        checkpoints, token = fitting(found, page, lambda checkpoint: checkpoint.tinker_path)
        return checkpoint_pb2.ListCheckpointsResponse(
            checkpoints=checkpoints, next_page_token=token, total_size=page.total_size
        )

    async def PublishCheckpoint(
        self, request: checkpoint_pb2.PublishCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """Lets every tenant read a checkpoint."""
        tenant, path = await self._auth.tenant(context), parse_path("tinker_path", request.tinker_path)
        return await self._checkpoints.set_public(path, tenant, public=True)

    async def UnpublishCheckpoint(
        self, request: checkpoint_pb2.UnpublishCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """Takes a publication back."""
        tenant, path = await self._auth.tenant(context), parse_path("tinker_path", request.tinker_path)
        return await self._checkpoints.set_public(path, tenant, public=False)

    async def SetCheckpointTtl(
        self, request: checkpoint_pb2.SetCheckpointTtlRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """Sets or removes the time at which a checkpoint deletes itself."""
        tenant, path = await self._auth.tenant(context), parse_path("tinker_path", request.tinker_path)
        check_ttl("ttl_seconds", request)
        seconds = request.ttl_seconds if request.HasField("ttl_seconds") else None
        return await self._checkpoints.set_lifetime(path, tenant, seconds)

    async def DeleteCheckpoint(
        self, request: checkpoint_pb2.DeleteCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """Takes a checkpoint out of the catalog, and its files away unless somebody still needs them."""
        tenant, path = await self._auth.tenant(context), parse_path("tinker_path", request.tinker_path)
        removed = await self._checkpoints.remove(path, tenant)
        await self._stores.pins.remove_if_unpinned(removed.location)
        return removed.checkpoint

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
        return await self._checkpoints.get(parse_path("tinker_path", path), tenant)
