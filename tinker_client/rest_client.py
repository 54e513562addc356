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
    """Lists, shares, downloads and deletes what the owner of the API key made."""

    def __init__(
        self, *, base_url: str | None = None, api_key: str | None = None, connection: Connection | None = None
    ) -> None:
        """Says where the platform is; sends nothing.

        Args:
            base_url: as in ServiceClient.
            api_key: as in ServiceClient.
            connection: the connection of the ServiceClient that creates this client; None: a new one.

        Raises:
            ValueError: `base_url` is not an address as in ServiceClient.
            AuthenticationError: there is no API key.
        """
        self._shares = connection is not None
        self._connection = connection or Connection(base_url, api_key)
        self._calls = CatalogCalls(self._connection.transport)

    def __repr__(self) -> str:
        return f"<RestClient of {self._connection.transport.address}>"

    def get_server_capabilities(self) -> APIFuture[types.GetServerCapabilitiesResponse]:
        """Looks up the base models that are served at this moment.

        Returns:
            A future of GetServerCapabilitiesResponse: the models and their limits.

        Raises:
            APIStatusError: raised by the future: the platform refused the call.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.server_capabilities())

    def get_training_run(self, training_run_id: str) -> APIFuture[types.TrainingRun]:
        """Looks up one training run.

        Args:
            training_run_id: id of the run.

        Returns:
            A future of TrainingRun.

        Raises:
            APIStatusError: raised by the future: NotFoundError: there is no such run.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.training_run(training_run_id))

    def get_training_run_by_tinker_path(self, tinker_path: str) -> APIFuture[types.TrainingRun]:
        """Looks up the training run that wrote a checkpoint.

        Args:
            tinker_path: path of the checkpoint.

        Returns:
            A future of TrainingRun.

        Raises:
            ValueError: `tinker_path` is not a tinker path; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such run.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self.get_training_run(_parsed(tinker_path).training_run_id)

    def list_training_runs(self, limit: int = 20, page_token: str = "") -> APIFuture[types.TrainingRunsResponse]:
        """Lists training runs, newest first.

        Args:
            limit: most runs on the page, 1 to 1,000.
            page_token: `next_page_token` of the page before; empty: the first page.

        Returns:
            A future of TrainingRunsResponse: a page, and the token of the next one.

        Raises:
            ValueError: `limit` is not in [1, 1000]; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the call.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.training_runs(_page_size(limit), page_token))

    def list_training_metrics(
        self, training_run_id: str, limit: int = LARGEST_PAGE, page_token: str = ""
    ) -> APIFuture[types.TrainingMetricsResponse]:
        """Lists what the operations of a run measured, oldest first.

        Args:
            training_run_id: id of the run.
            limit: most entries on the page, 1 to 1,000.
            page_token: `next_page_token` of the page before; empty: the first page.

        Returns:
            A future of TrainingMetricsResponse: a page, and the token of the next one.

        Raises:
            ValueError: `limit` is not in [1, 1000]; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such run.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.training_metrics(training_run_id, _page_size(limit), page_token))

    def list_checkpoints(self, training_run_id: str) -> APIFuture[types.CheckpointsListResponse]:
        """Lists all checkpoints of one training run, newest first.

        Args:
            training_run_id: id of the run.

        Returns:
            A future of CheckpointsListResponse: all of them, with an empty token.

        Raises:
            APIStatusError: raised by the future: the platform refused the call.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.all_checkpoints(training_run_id))

    def list_user_checkpoints(self, limit: int = 100, page_token: str = "") -> APIFuture[types.CheckpointsListResponse]:
        """Lists the checkpoints of all runs, newest first.

        Args:
            limit: most checkpoints on the page, 1 to 1,000.
            page_token: `next_page_token` of the page before; empty: the first page.

        Returns:
            A future of CheckpointsListResponse: a page, and the token of the next one.

        Raises:
            ValueError: `limit` is not in [1, 1000]; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the call.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.checkpoints(_page_size(limit), page_token))

    def get_checkpoint(self, tinker_path: str) -> APIFuture[types.Checkpoint]:
        """Looks up one checkpoint.

        Args:
            tinker_path: path of the checkpoint; the form without a kind means the only checkpoint of that name.

        Returns:
            A future of Checkpoint.

        Raises:
            ValueError: `tinker_path` is not a tinker path; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.checkpoint(_path(tinker_path)))

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[types.WeightsInfoResponse]:
        """Looks up base model and adapter shape of a checkpoint.

        Args:
            tinker_path: path of the checkpoint; the form without a kind means the only checkpoint of that name.

        Returns:
            A future of WeightsInfoResponse.

        Raises:
            ValueError: `tinker_path` is not a tinker path; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._weights_info(_path(tinker_path)))

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[types.Checkpoint]:
        """Lets every user of the platform read, load, sample and download a checkpoint.

        Args:
            tinker_path: path of the checkpoint; the form without a kind means the only checkpoint of that name.

        Returns:
            A future of the published Checkpoint.

        Raises:
            ValueError: `tinker_path` is not a tinker path; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint; PermissionDeniedError: it
                is another user's.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.publish(_path(tinker_path)))

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[types.Checkpoint]:
        """Takes a publication back; open sampling clients keep the checkpoint.

        Args:
            tinker_path: path of the checkpoint; the form without a kind means the only checkpoint of that name.

        Returns:
            A future of the Checkpoint.

        Raises:
            ValueError: `tinker_path` is not a tinker path; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint; PermissionDeniedError: it
                is another user's.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.unpublish(_path(tinker_path)))

    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> APIFuture[types.Checkpoint]:
        """Sets or removes the expiry of a checkpoint.

        Args:
            tinker_path: path of the checkpoint; the form without a kind means the only checkpoint of that name.
            ttl_seconds: seconds from now until the platform deletes it, 3,600 to 315,360,000 (ten years); None: never.

        Returns:
            A future of the Checkpoint, with its `expires_at`.

        Raises:
            ValueError: `tinker_path` is not a tinker path, or `ttl_seconds` no integer; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint; PermissionDeniedError: it
                is another user's; BadRequestError: `ttl_seconds` is out of range.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        with _convert.naming("ttl_seconds"):
            request = checkpoint_pb2.SetCheckpointTtlRequest(tinker_path=_path(tinker_path), ttl_seconds=ttl_seconds)
        return self._start(self._calls.set_ttl(request))

    def download_checkpoint(
        self, tinker_path: str, directory: str | Path, progress: ReportBytes | None = None
    ) -> APIFuture[Path]:
        """Downloads a checkpoint as a directory that PEFT can load; the same call resumes a download.

        Args:
            tinker_path: path of the checkpoint; the form without a kind means the only checkpoint of that name.
            directory: where to write; created if it is missing.
            progress: called with (bytes here, bytes in all) on the client's own thread, so it must return soon; None:
                nothing.

        Returns:
            A future of the directory's path.

        Raises:
            ValueError: `tinker_path` is not a tinker path; raised by the call itself.
            FileExistsError: raised by the future: a file of the same name has other content; nothing was downloaded.
            TinkerError: raised by the future: a file arrived damaged.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._download(_path(tinker_path), Path(directory), progress))

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> APIFuture[None]:
        """Deletes a checkpoint; open sampling clients keep it.

        Args:
            training_run_id: id of the run.
            checkpoint_id: `weights/<name>` or `sampler_weights/<name>`.

        Returns:
            A future of None.

        Raises:
            ValueError: the two do not make a tinker path; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint; PermissionDeniedError: it
                is another user's.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Deletes a checkpoint; open sampling clients keep it.

        Args:
            tinker_path: path of the checkpoint; the form without a kind means the only checkpoint of that name.

        Returns:
            A future of None.

        Raises:
            ValueError: `tinker_path` is not a tinker path; raised by the call itself.
            APIStatusError: raised by the future: NotFoundError: there is no such checkpoint; PermissionDeniedError: it
                is another user's.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.delete(_path(tinker_path)))

    def get_session(self, session_id: str) -> APIFuture[types.Session]:
        """Looks up a session, with the ids of its training runs and sampling sessions.

        Args:
            session_id: id of the session.

        Returns:
            A future of Session.

        Raises:
            APIStatusError: raised by the future: NotFoundError: there is no such session.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.session(session_id))

    def list_sessions(self, limit: int = 20, page_token: str = "") -> APIFuture[types.ListSessionsResponse]:
        """Lists sessions, newest first.

        Args:
            limit: most sessions on the page, 1 to 1,000.
            page_token: `next_page_token` of the page before; empty: the first page.

        Returns:
            A future of ListSessionsResponse: a page, and the token of the next one.

        Raises:
            ValueError: `limit` is not in [1, 1000]; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the call.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._start(self._calls.sessions(_page_size(limit), page_token))

    async def get_server_capabilities_async(self) -> types.GetServerCapabilitiesResponse:
        """Like `get_server_capabilities` in an event loop; awaiting it gives the value."""
        return await self.get_server_capabilities()

    async def get_training_run_async(self, training_run_id: str) -> types.TrainingRun:
        """Like `get_training_run` in an event loop; awaiting it gives the value."""
        return await self.get_training_run(training_run_id)

    async def get_training_run_by_tinker_path_async(self, tinker_path: str) -> types.TrainingRun:
        """Like `get_training_run_by_tinker_path` in an event loop; awaiting it gives the value."""
        return await self.get_training_run_by_tinker_path(tinker_path)

    async def list_training_runs_async(self, limit: int = 20, page_token: str = "") -> types.TrainingRunsResponse:
        """Like `list_training_runs` in an event loop; awaiting it gives the value."""
        return await self.list_training_runs(limit, page_token)

    async def list_training_metrics_async(
        self, training_run_id: str, limit: int = LARGEST_PAGE, page_token: str = ""
    ) -> types.TrainingMetricsResponse:
        """Like `list_training_metrics` in an event loop; awaiting it gives the value."""
        return await self.list_training_metrics(training_run_id, limit, page_token)

    async def list_checkpoints_async(self, training_run_id: str) -> types.CheckpointsListResponse:
        """Like `list_checkpoints` in an event loop; awaiting it gives the value."""
        return await self.list_checkpoints(training_run_id)

    async def list_user_checkpoints_async(
        self, limit: int = 100, page_token: str = ""
    ) -> types.CheckpointsListResponse:
        """Like `list_user_checkpoints` in an event loop; awaiting it gives the value."""
        return await self.list_user_checkpoints(limit, page_token)

    async def get_checkpoint_async(self, tinker_path: str) -> types.Checkpoint:
        """Like `get_checkpoint` in an event loop; awaiting it gives the value."""
        return await self.get_checkpoint(tinker_path)

    async def get_weights_info_by_tinker_path_async(self, tinker_path: str) -> types.WeightsInfoResponse:
        """Like `get_weights_info_by_tinker_path` in an event loop; awaiting it gives the value."""
        return await self.get_weights_info_by_tinker_path(tinker_path)

    async def publish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> types.Checkpoint:
        """Like `publish_checkpoint_from_tinker_path` in an event loop; awaiting it gives the value."""
        return await self.publish_checkpoint_from_tinker_path(tinker_path)

    async def unpublish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> types.Checkpoint:
        """Like `unpublish_checkpoint_from_tinker_path` in an event loop; awaiting it gives the value."""
        return await self.unpublish_checkpoint_from_tinker_path(tinker_path)

    async def set_checkpoint_ttl_from_tinker_path_async(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> types.Checkpoint:
        """Like `set_checkpoint_ttl_from_tinker_path` in an event loop; awaiting it gives the value."""
        return await self.set_checkpoint_ttl_from_tinker_path(tinker_path, ttl_seconds)

    async def download_checkpoint_async(
        self, tinker_path: str, directory: str | Path, progress: ReportBytes | None = None
    ) -> Path:
        """Like `download_checkpoint` in an event loop; awaiting it gives the value."""
        return await self.download_checkpoint(tinker_path, directory, progress)

    async def delete_checkpoint_async(self, training_run_id: str, checkpoint_id: str) -> None:
        """Like `delete_checkpoint` in an event loop; awaiting it gives the value."""
        await self.delete_checkpoint(training_run_id, checkpoint_id)

    async def delete_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        """Like `delete_checkpoint_from_tinker_path` in an event loop; awaiting it gives the value."""
        await self.delete_checkpoint_from_tinker_path(tinker_path)

    async def get_session_async(self, session_id: str) -> types.Session:
        """Like `get_session` in an event loop; awaiting it gives the value."""
        return await self.get_session(session_id)

    async def list_sessions_async(self, limit: int = 20, page_token: str = "") -> types.ListSessionsResponse:
        """Like `list_sessions` in an event loop; awaiting it gives the value."""
        return await self.list_sessions(limit, page_token)

    def close(self) -> None:
        """Closes the connection, unless a ServiceClient shares it."""
        if not self._shares and not self._connection.loop.is_forked:
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
        raise ValueError(f"limit: must be in [1, {LARGEST_PAGE}] (got {limit})")
    return limit


def _path(tinker_path: str) -> str:
    """Returns the path as given; ValueError if it is not a tinker path."""
    return str(_parsed(tinker_path))


def _parsed(tinker_path: str) -> TinkerPath:
    try:
        return TinkerPath.parse(tinker_path)
    except ValueError as error:
        raise ValueError(f"tinker_path: {error}") from None
