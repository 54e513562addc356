"""RestClient: looks at runs, checkpoints and sessions; shares and deletes checkpoints. It needs no session.

The name is the API's; like everything here it speaks gRPC. Every method returns an APIFuture; its `_async` twin
returns the value.
"""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from tinker_client import _convert, types
from tinker_client._catalog_calls import LARGEST_PAGE, CatalogCalls
from tinker_client._connection import Connection
from tinker_client._download import ReportBytes, download
from tinker_client.future import APIFuture
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2

T = TypeVar("T")


class RestClient:
    """Reads, shares and deletes what the API key's owner has made; reads what others have published."""

    def __init__(
        self, *, base_url: str | None = None, api_key: str | None = None, connection: Connection | None = None
    ) -> None:
        """Address and key as ServiceClient, whose `connection` is shared if it made this client."""
        self._shares = connection is not None
        self._connection = connection or Connection(base_url, api_key)
        self._calls = CatalogCalls(self._connection.transport)

    def get_server_capabilities(self) -> APIFuture[types.GetServerCapabilitiesResponse]:
        """The base models that are served at this moment, and their limits."""
        return self._start(self._calls.server_capabilities())

    def get_training_run(self, training_run_id: str) -> APIFuture[types.TrainingRun]:
        """One training run."""
        return self._start(self._calls.training_run(training_run_id))

    def get_training_run_by_tinker_path(self, tinker_path: str) -> APIFuture[types.TrainingRun]:
        """The training run that wrote a checkpoint."""
        return self.get_training_run(TinkerPath.parse(tinker_path).training_run_id)

    def list_training_runs(self, limit: int = 20, page_token: str = "") -> APIFuture[types.TrainingRunsResponse]:
        """A page of training runs, newest first; `page_token` is the `next_page_token` of the page before."""
        return self._start(self._calls.training_runs(_page_size(limit), page_token))

    def list_training_metrics(
        self, training_run_id: str, limit: int = LARGEST_PAGE, page_token: str = ""
    ) -> APIFuture[types.TrainingMetricsResponse]:
        """A page of what a run's operations have measured, oldest first."""
        return self._start(self._calls.training_metrics(training_run_id, _page_size(limit), page_token))

    def list_checkpoints(self, training_run_id: str) -> APIFuture[types.CheckpointsListResponse]:
        """All checkpoints of one training run, newest first."""
        return self._start(self._calls.all_checkpoints(training_run_id))

    def list_user_checkpoints(self, limit: int = 100, page_token: str = "") -> APIFuture[types.CheckpointsListResponse]:
        """A page of all checkpoints, newest first; `page_token` is the `next_page_token` of the page before."""
        return self._start(self._calls.checkpoints(_page_size(limit), page_token))

    def get_checkpoint(self, tinker_path: str) -> APIFuture[types.Checkpoint]:
        """One checkpoint; the two-part form of a path means the only one of that name."""
        return self._start(self._calls.checkpoint(_path(tinker_path)))

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[types.WeightsInfoResponse]:
        """What a checkpoint's weights are for: base model and adapter shape."""
        return self._start(self._weights_info(_path(tinker_path)))

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[types.Checkpoint]:
        """Lets every user of the platform read, load, sample and download a checkpoint; only its owner changes it."""
        return self._start(self._calls.publish(_path(tinker_path)))

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[types.Checkpoint]:
        """Takes a publication back; sampling clients that are open keep the checkpoint."""
        return self._start(self._calls.unpublish(_path(tinker_path)))

    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> APIFuture[types.Checkpoint]:
        """Has a checkpoint delete itself so many seconds from now; None: never."""
        with _convert.naming("ttl_seconds"):
            request = checkpoint_pb2.SetCheckpointTtlRequest(tinker_path=_path(tinker_path), ttl_seconds=ttl_seconds)
        return self._start(self._calls.set_ttl(request))

    def download_checkpoint(
        self, tinker_path: str, directory: str | Path, progress: ReportBytes | None = None
    ) -> APIFuture[Path]:
        """Writes a checkpoint into a directory that PEFT can load; returns the directory.

        An interrupted download goes on where it stopped when it is asked for again. `progress` is called with the bytes
        that are here and the bytes in all. A file of the same name with other content is a FileExistsError.
        """
        return self._start(self._download(_path(tinker_path), Path(directory), progress))

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> APIFuture[None]:
        """Deletes a checkpoint, e.g. of id "weights/step-100"."""
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Deletes a checkpoint; sampling clients that are open keep it."""
        return self._start(self._calls.delete(_path(tinker_path)))

    def get_session(self, session_id: str) -> APIFuture[types.Session]:
        """A session with the ids of what was made in it."""
        return self._start(self._calls.session(session_id))

    def list_sessions(self, limit: int = 20, page_token: str = "") -> APIFuture[types.ListSessionsResponse]:
        """A page of sessions, newest first; `page_token` is the `next_page_token` of the page before."""
        return self._start(self._calls.sessions(_page_size(limit), page_token))

    async def get_server_capabilities_async(self) -> types.GetServerCapabilitiesResponse:
        """`get_server_capabilities`, awaited."""
        return await self.get_server_capabilities()

    async def get_training_run_async(self, training_run_id: str) -> types.TrainingRun:
        """`get_training_run`, awaited."""
        return await self.get_training_run(training_run_id)

    async def get_training_run_by_tinker_path_async(self, tinker_path: str) -> types.TrainingRun:
        """`get_training_run_by_tinker_path`, awaited."""
        return await self.get_training_run_by_tinker_path(tinker_path)

    async def list_training_runs_async(self, limit: int = 20, page_token: str = "") -> types.TrainingRunsResponse:
        """`list_training_runs`, awaited."""
        return await self.list_training_runs(limit, page_token)

    async def list_training_metrics_async(
        self, training_run_id: str, limit: int = LARGEST_PAGE, page_token: str = ""
    ) -> types.TrainingMetricsResponse:
        """`list_training_metrics`, awaited."""
        return await self.list_training_metrics(training_run_id, limit, page_token)

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

    async def get_weights_info_by_tinker_path_async(self, tinker_path: str) -> types.WeightsInfoResponse:
        """`get_weights_info_by_tinker_path`, awaited."""
        return await self.get_weights_info_by_tinker_path(tinker_path)

    async def publish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> types.Checkpoint:
        """`publish_checkpoint_from_tinker_path`, awaited."""
        return await self.publish_checkpoint_from_tinker_path(tinker_path)

    async def unpublish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> types.Checkpoint:
        """`unpublish_checkpoint_from_tinker_path`, awaited."""
        return await self.unpublish_checkpoint_from_tinker_path(tinker_path)

    async def set_checkpoint_ttl_from_tinker_path_async(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> types.Checkpoint:
        """`set_checkpoint_ttl_from_tinker_path`, awaited."""
        return await self.set_checkpoint_ttl_from_tinker_path(tinker_path, ttl_seconds)

    async def download_checkpoint_async(
        self, tinker_path: str, directory: str | Path, progress: ReportBytes | None = None
    ) -> Path:
        """`download_checkpoint`, awaited."""
        return await self.download_checkpoint(tinker_path, directory, progress)

    async def delete_checkpoint_async(self, training_run_id: str, checkpoint_id: str) -> None:
        """`delete_checkpoint`, awaited."""
        await self.delete_checkpoint(training_run_id, checkpoint_id)

    async def delete_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        """`delete_checkpoint_from_tinker_path`, awaited."""
        await self.delete_checkpoint_from_tinker_path(tinker_path)

    async def get_session_async(self, session_id: str) -> types.Session:
        """`get_session`, awaited."""
        return await self.get_session(session_id)

    async def list_sessions_async(self, limit: int = 20, page_token: str = "") -> types.ListSessionsResponse:
        """`list_sessions`, awaited."""
        return await self.list_sessions(limit, page_token)

    def close(self) -> None:
        """Closes the connection, unless a ServiceClient shares it."""
        if not self._shares:
            self._connection.loop.run(self._connection.close())

    async def _download(self, tinker_path: str, directory: Path, progress: ReportBytes | None) -> Path:
        transport = self._connection.transport
        listing = checkpoint_pb2.ListCheckpointFilesRequest(tinker_path=tinker_path)
        files = (await transport.call(transport.checkpoints.ListCheckpointFiles, listing)).files

        def request(name: str, offset: int) -> checkpoint_pb2.ReadFileRequest:
            return checkpoint_pb2.ReadFileRequest(tinker_path=tinker_path, name=name, offset=offset)

        return await download(transport, files, directory, request, progress)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> APIFuture[T]:
        return APIFuture(self._connection.loop, coroutine)

    async def _weights_info(self, tinker_path: str) -> types.WeightsInfoResponse:
        checkpoint = await self._calls.checkpoint(tinker_path)
        return types.WeightsInfoResponse(
            checkpoint.base_model, True, checkpoint.lora_config.rank, checkpoint.lora_config
        )


def _page_size(limit: int) -> int:
    if not 1 <= limit <= LARGEST_PAGE:
        raise ValueError(f"limit is {limit}; allowed are 1 to {LARGEST_PAGE}")
    return limit


def _path(tinker_path: str) -> str:
    """A path as it was given, once it is known to be one; ValueError with what is allowed otherwise."""
    return str(TinkerPath.parse(tinker_path))
