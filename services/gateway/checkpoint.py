"""tinker.v1.CheckpointService: reads and deletes checkpoints."""

from __future__ import annotations

import asyncio

from services.core.catalog import StoredCheckpoint
from services.core.errors import InvalidArgumentError
from services.core.server import Context
from services.gateway.auth import Authenticator
from services.gateway.paging import page_bounds
from services.gateway.stores import Stores
from services.gateway.validation.fields import parse_path
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, checkpoint_pb2_grpc

DEFAULT_CHECKPOINTS_PER_PAGE = 100


class CheckpointServicer(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """Checkpoints of the caller's tenant."""

    def __init__(self, stores: Stores, auth: Authenticator) -> None:
        self._stores = stores
        self._auth = auth

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

    async def _stored(self, path: str, tenant: str) -> StoredCheckpoint:
        parsed = parse_path("tinker_path", path)
        if parsed.kind is None:
            message = (
                f"{path} leaves open which checkpoint is meant; allowed are .../weights/... and .../sampler_weights/..."
            )
            raise InvalidArgumentError.at("tinker_path", message, reason="BAD_TINKER_PATH")
        return await self._stores.catalog.checkpoint(parsed, tenant)
