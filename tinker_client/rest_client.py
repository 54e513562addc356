"""RestClient: looks at training runs and checkpoints, and deletes checkpoints. It needs no session.

The name is the API's; like everything here it speaks gRPC. Every method returns an APIFuture; its `_async` twin
returns the value.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from tinker_client import _convert, types
from tinker_client._connection import Connection
from tinker_client.future import APIFuture
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, training_pb2

T = TypeVar("T")

_LARGEST_PAGE = 1000


class RestClient:
    """Reads and deletes what the API key's owner has made."""

    def __init__(
        self, *, base_url: str | None = None, api_key: str | None = None, connection: Connection | None = None
    ) -> None:
        """Address and key as ServiceClient, whose `connection` is shared if it made this client."""
        self._shares = connection is not None
        self._connection = connection or Connection(base_url, api_key)

    def get_training_run(self, training_run_id: str) -> APIFuture[types.TrainingRun]:
        """One training run."""
        return self._start(self._training_run(training_run_id))

    def list_training_runs(self, limit: int = 20, page_token: str = "") -> APIFuture[types.TrainingRunsResponse]:
        """A page of training runs, newest first; `page_token` is the `next_page_token` of the page before."""
        request = training_pb2.ListTrainingRunsRequest(page_size=_page_size(limit), page_token=page_token)
        return self._start(self._training_runs(request))

    def list_checkpoints(self, training_run_id: str) -> APIFuture[types.CheckpointsListResponse]:
        """All checkpoints of one training run, newest first."""
        return self._start(self._all_checkpoints(training_run_id))

    def list_user_checkpoints(self, limit: int = 100, page_token: str = "") -> APIFuture[types.CheckpointsListResponse]:
        """A page of all checkpoints, newest first; `page_token` is the `next_page_token` of the page before."""
        request = checkpoint_pb2.ListCheckpointsRequest(page_size=_page_size(limit), page_token=page_token)
        return self._start(self._checkpoints(request))

    def get_checkpoint(self, tinker_path: str) -> APIFuture[types.Checkpoint]:
        """One checkpoint."""
        return self._start(self._checkpoint(tinker_path))

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> APIFuture[None]:
        """Deletes a checkpoint, e.g. of id "weights/step-100"."""
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Deletes a checkpoint."""
        return self._start(self._delete(str(TinkerPath.parse(tinker_path))))

    async def get_training_run_async(self, training_run_id: str) -> types.TrainingRun:
        """`get_training_run`, awaited."""
        return await self.get_training_run(training_run_id)

    async def list_training_runs_async(self, limit: int = 20, page_token: str = "") -> types.TrainingRunsResponse:
        """`list_training_runs`, awaited."""
        return await self.list_training_runs(limit, page_token)

    async def list_checkpoints_async(self, training_run_id: str) -> types.CheckpointsListResponse:
        """`list_checkpoints`, awaited."""
        return await self.list_checkpoints(training_run_id)

    async def list_user_checkpoints_async(
        self, limit: int = 100, page_token: str = ""
    ) -> types.CheckpointsListResponse:
        """`list_user_checkpoints`, awaited."""
        return await self.list_user_checkpoints(limit, page_token)

    async def get_checkpoint_async(self, tinker_path: str) -> types.Checkpoint:
        """`get_checkpoint`, awaited."""
        return await self.get_checkpoint(tinker_path)

    async def delete_checkpoint_async(self, training_run_id: str, checkpoint_id: str) -> None:
        """`delete_checkpoint`, awaited."""
        await self.delete_checkpoint(training_run_id, checkpoint_id)

    async def delete_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        """`delete_checkpoint_from_tinker_path`, awaited."""
        await self.delete_checkpoint_from_tinker_path(tinker_path)

    def close(self) -> None:
        """Closes the connection, unless a ServiceClient shares it."""
        if not self._shares:
            self._connection.loop.run(self._connection.close())

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> APIFuture[T]:
        return APIFuture(self._connection.loop, coroutine)

    async def _training_run(self, training_run_id: str) -> types.TrainingRun:
        transport = self._connection.transport
        request = training_pb2.GetTrainingRunRequest(training_run_id=training_run_id)
        return _convert.training_run(await transport.call(transport.training.GetTrainingRun, request))

    async def _training_runs(self, request: training_pb2.ListTrainingRunsRequest) -> types.TrainingRunsResponse:
        transport = self._connection.transport
        page = await transport.call(transport.training.ListTrainingRuns, request)
        runs = [_convert.training_run(run) for run in page.training_runs]
        return types.TrainingRunsResponse(runs, page.next_page_token, page.total_size)

    async def _checkpoints(self, request: checkpoint_pb2.ListCheckpointsRequest) -> types.CheckpointsListResponse:
        transport = self._connection.transport
        page = await transport.call(transport.checkpoints.ListCheckpoints, request)
        checkpoints = [_convert.checkpoint(item) for item in page.checkpoints]
        return types.CheckpointsListResponse(checkpoints, page.next_page_token, page.total_size)

    async def _all_checkpoints(self, training_run_id: str) -> types.CheckpointsListResponse:
        checkpoints: list[types.Checkpoint] = []
        request = checkpoint_pb2.ListCheckpointsRequest(training_run_id=training_run_id, page_size=_LARGEST_PAGE)
        while True:
            page = await self._checkpoints(request)
            checkpoints += page.checkpoints
            if not page.next_page_token:
                return types.CheckpointsListResponse(checkpoints, "", page.total_size)
            request.page_token = page.next_page_token

    async def _checkpoint(self, tinker_path: str) -> types.Checkpoint:
        transport = self._connection.transport
        request = checkpoint_pb2.GetCheckpointRequest(tinker_path=tinker_path)
        return _convert.checkpoint(await transport.call(transport.checkpoints.GetCheckpoint, request))

    async def _delete(self, tinker_path: str) -> None:
        transport = self._connection.transport
        request = checkpoint_pb2.DeleteCheckpointRequest(tinker_path=tinker_path)
        await transport.call(transport.checkpoints.DeleteCheckpoint, request)


def _page_size(limit: int) -> int:
    if not 1 <= limit <= _LARGEST_PAGE:
        raise ValueError(f"limit is {limit}; allowed are 1 to {_LARGEST_PAGE}")
    return limit
