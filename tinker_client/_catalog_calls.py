"""Calls that look at, share and delete what exists: runs, checkpoints, sessions and metrics. They need no session.

Each method makes one request and converts its answer; `all_checkpoints` makes one a page. Lives on the background loop.
"""

from __future__ import annotations

from tinker_client import _catalog_convert, _convert, types
from tinker_client._transport import Transport
from tinker_proto.v1 import capability_pb2, checkpoint_pb2, session_pb2, training_pb2

LARGEST_PAGE = 1000


class CatalogCalls:
    """The catalog of one platform, over one channel."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def server_capabilities(self) -> types.GetServerCapabilitiesResponse:
        """The base models that are served."""
        request = capability_pb2.GetServerCapabilitiesRequest()
        return _convert.capabilities(
            await self._transport.call(self._transport.capabilities.GetServerCapabilities, request)
        )

    async def training_run(self, training_run_id: str) -> types.TrainingRun:
        """One run."""
        request = training_pb2.GetTrainingRunRequest(training_run_id=training_run_id)
        return _catalog_convert.training_run(
            await self._transport.call(self._transport.training.GetTrainingRun, request)
        )

    async def training_runs(self, page_size: int, page_token: str) -> types.TrainingRunsResponse:
        """A page of runs."""
        request = training_pb2.ListTrainingRunsRequest(page_size=page_size, page_token=page_token)
        page = await self._transport.call(self._transport.training.ListTrainingRuns, request)
        runs = [_catalog_convert.training_run(run) for run in page.training_runs]
        return types.TrainingRunsResponse(runs, page.next_page_token, page.total_size)

    async def training_metrics(
        self, training_run_id: str, page_size: int, page_token: str
    ) -> types.TrainingMetricsResponse:
        """A page of a run's metrics."""
        request = training_pb2.ListTrainingMetricsRequest(
            training_run_id=training_run_id, page_size=page_size, page_token=page_token
        )
        page = await self._transport.call(self._transport.training.ListTrainingMetrics, request)
        entries = [_catalog_convert.training_metrics(entry) for entry in page.training_metrics]
        return types.TrainingMetricsResponse(entries, page.next_page_token)

    async def checkpoint(self, tinker_path: str) -> types.Checkpoint:
        """One checkpoint."""
        request = checkpoint_pb2.GetCheckpointRequest(tinker_path=tinker_path)
        return _catalog_convert.checkpoint(
            await self._transport.call(self._transport.checkpoints.GetCheckpoint, request)
        )

    async def checkpoints(
        self, page_size: int, page_token: str, training_run_id: str = ""
    ) -> types.CheckpointsListResponse:
        """A page of all checkpoints, or of one run's."""
        request = checkpoint_pb2.ListCheckpointsRequest(
            training_run_id=training_run_id, page_size=page_size, page_token=page_token
        )
        page = await self._transport.call(self._transport.checkpoints.ListCheckpoints, request)
        checkpoints = [_catalog_convert.checkpoint(item) for item in page.checkpoints]
        return types.CheckpointsListResponse(checkpoints, page.next_page_token, page.total_size)

    async def all_checkpoints(self, training_run_id: str) -> types.CheckpointsListResponse:
        """All checkpoints of a run."""
        checkpoints: list[types.Checkpoint] = []
        token = ""
        while True:
            page = await self.checkpoints(LARGEST_PAGE, token, training_run_id)
            checkpoints += page.checkpoints
            token = page.next_page_token
            if not token:
                return types.CheckpointsListResponse(checkpoints, "", page.total_size)

    async def delete(self, tinker_path: str) -> None:
        """Deletes a checkpoint."""
        request = checkpoint_pb2.DeleteCheckpointRequest(tinker_path=tinker_path)
        await self._transport.call(self._transport.checkpoints.DeleteCheckpoint, request)

    async def publish(self, tinker_path: str) -> types.Checkpoint:
        """Lets every tenant read a checkpoint."""
        request = checkpoint_pb2.PublishCheckpointRequest(tinker_path=tinker_path)
        return _catalog_convert.checkpoint(
            await self._transport.call(self._transport.checkpoints.PublishCheckpoint, request)
        )

    async def unpublish(self, tinker_path: str) -> types.Checkpoint:
        """Takes a publication back."""
        request = checkpoint_pb2.UnpublishCheckpointRequest(tinker_path=tinker_path)
        return _catalog_convert.checkpoint(
            await self._transport.call(self._transport.checkpoints.UnpublishCheckpoint, request)
        )

    async def set_ttl(self, request: checkpoint_pb2.SetCheckpointTtlRequest) -> types.Checkpoint:
        """Sets or removes the time at which a checkpoint deletes itself."""
        return _catalog_convert.checkpoint(
            await self._transport.call(self._transport.checkpoints.SetCheckpointTtl, request)
        )

    async def session(self, session_id: str) -> types.Session:
        """One session with what was made in it."""
        request = session_pb2.GetSessionRequest(session_id=session_id)
        return _catalog_convert.session(await self._transport.call(self._transport.sessions.GetSession, request))

    async def sessions(self, page_size: int, page_token: str) -> types.ListSessionsResponse:
        """A page of sessions."""
        request = session_pb2.ListSessionsRequest(page_size=page_size, page_token=page_token)
        page = await self._transport.call(self._transport.sessions.ListSessions, request)
        sessions = [_catalog_convert.session(item) for item in page.sessions]
        return types.ListSessionsResponse(sessions, page.next_page_token, page.total_size)
