"""ServiceClient: the way in. It makes the clients that train, sample and look things up.

Nothing is sent before the first method is called. All clients that one ServiceClient makes share its connection and
its session; `close`, the end of a `with` block, or the interpreter's exit ends both.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tinker_client import _catalog_convert, _convert, types
from tinker_client._connection import Connection
from tinker_client._download import ReportBytes
from tinker_client._session import SubmitMethod
from tinker_client._transport import PATIENCE
from tinker_client._upload import AdapterFiles, import_adapter, import_request
from tinker_client.future import APIFuture
from tinker_client.rest_client import RestClient
from tinker_client.sampling_client import SamplingClient
from tinker_client.training_client import TrainingClient
from tinker_proto.v1 import capability_pb2, checkpoint_pb2, training_pb2

T = TypeVar("T")


class ServiceClient:
    """A platform, used with one API key: creates the clients that train, sample and look things up."""

    def __init__(
        self,
        user_metadata: Mapping[str, str] | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        patience: timedelta = PATIENCE,
    ) -> None:
        """Says where the platform is; sends nothing.

        Args:
            user_metadata: labels of the session, at most 64 of at most 1,024 characters.
            base_url: grpc://host:port, or grpcs://host:port for TLS; None: TINKER_GRPC_URL, else
                grpc://127.0.0.1:50051.
            api_key: None: TINKER_API_KEY.
            patience: how long the platform may be unreachable, after a first contact, before calls fail.

        Raises:
            ValueError: `base_url` is not such an address.
            AuthenticationError: there is no API key.
        """
        self._connection = Connection(base_url, api_key, user_metadata=user_metadata, patience=patience)

    def __repr__(self) -> str:
        return f"<ServiceClient of {self._connection.transport.address}>"

    def get_server_capabilities(self) -> types.GetServerCapabilitiesResponse:
        """Returns the base models that are served at this moment, with their limits.

        Raises:
            APIStatusError: the platform refused the call.
            APIConnectionError: the platform did not answer for `patience`.
        """
        return self._run(self._get_server_capabilities())

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: Mapping[str, str] | None = None,
        *,
        alpha: int = 32,
        use_rslora: bool = False,
        target_modules: Sequence[str] | None = None,
    ) -> TrainingClient:
        """Creates a training run: a fresh LoRA adapter on a frozen base model.

        Args:
            base_model: a trainable model of `get_server_capabilities`.
            rank: rank of the adapter, 1 to the model's max_lora_rank.
            seed: seed of the initialisation; None: drawn by the platform and recorded.
            train_mlp: adapt the gate, up and down projections.
            train_attn: adapt the q, k, v and o projections.
            train_unembed: adapt lm_head.
            user_metadata: labels of the run, at most 64 of at most 1,024 characters.
            alpha: numerator of the scale alpha / rank, at least 1.
            use_rslora: scale by alpha / sqrt(rank) instead.
            target_modules: names of the adapted linears instead of the train_ flags, as in LoraConfig; None: what they
                say.

        Returns:
            A TrainingClient of the new run.

        Raises:
            ValueError: `target_modules` is empty or given with a train_ flag that is False, or a value does not fit its
                field.
            APIStatusError: the platform refused the call; BadRequestError names the field.
            RequestFailedError: the run could not be created.
            APIConnectionError: the platform did not answer for `patience`.
        """
        flags = (train_unembed, train_mlp, train_attn)
        config = types.LoraConfig(rank, seed, *flags, alpha, use_rslora, target_modules)
        return self._run(self._create_lora_training_client(base_model, config, user_metadata))

    def create_training_client_from_state(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Creates a training run from a checkpoint's weights, with a fresh optimizer and no accumulated gradient.

        Args:
            path: `tinker://<training_run_id>/weights/<name>`, the key owner's or a published one.
            user_metadata: labels of the run, at most 64 of at most 1,024 characters.

        Returns:
            A TrainingClient of the new run; base model and adapter shape are the checkpoint's.

        Raises:
            ValueError: a value does not fit its field.
            APIStatusError: the platform refused the call; NotFoundError: there is no such checkpoint.
            RequestFailedError: the run could not be created.
            APIConnectionError: the platform did not answer for `patience`.
        """
        return self._run(self._create_training_client_from_state(path, user_metadata, restore_optimizer=False))

    def create_training_client_from_state_with_optimizer(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Creates a training run that continues from a checkpoint's weights, optimizer and accumulated gradient.

        Args:
            path: `tinker://<training_run_id>/weights/<name>`, the key owner's or a published one.
            user_metadata: labels of the run, at most 64 of at most 1,024 characters.

        Returns:
            A TrainingClient of the new run; base model and adapter shape are the checkpoint's.

        Raises:
            ValueError: a value does not fit its field.
            APIStatusError: the platform refused the call; NotFoundError: there is no such checkpoint.
            RequestFailedError: the run could not be created.
            APIConnectionError: the platform did not answer for `patience`.
        """
        return self._run(self._create_training_client_from_state(path, user_metadata, restore_optimizer=True))

    def create_sampling_client(self, model_path: str | None = None, base_model: str | None = None) -> SamplingClient:
        """Creates a client that samples from a checkpoint or from a base model; give exactly one.

        Args:
            model_path: `tinker://<training_run_id>/sampler_weights/<name>` or `.../weights/<name>`.
            base_model: a sampleable model of `get_server_capabilities`.

        Returns:
            A SamplingClient of these weights, which do not change even if the checkpoint is deleted.

        Raises:
            ValueError: both or neither is given.
            APIStatusError: the platform refused the call; NotFoundError: there is no such checkpoint.
            APIConnectionError: the platform did not answer for `patience`.
        """
        return self._run(self._create_sampling_client(model_path, base_model))

    def import_checkpoint(
        self,
        path: str | Path,
        base_model: str,
        name: str,
        user_metadata: Mapping[str, str] | None = None,
        *,
        config: str | Path | None = None,
        rename_base_model: bool = False,
        ttl_seconds: int | None = None,
        progress: ReportBytes | None = None,
    ) -> types.ImportCheckpointResponse:
        """Creates a training run with a training checkpoint from a LoRA adapter in PEFT's format.

        Args:
            path: the adapter's directory, or its .safetensors file. bfloat16 and float16 weights become float32.
            base_model: the base model that the adapter is for, by the platform's name.
            name: name of the checkpoint, 1 to 200 characters of [A-Za-z0-9._-], not "." or "..".
            user_metadata: labels of run and checkpoint, at most 64 of at most 1,024 characters.
            config: adapter_config.json of a .safetensors file, if it is not in the same directory.
            rename_base_model: accept an adapter whose configuration names another base model, if its shapes fit.
            ttl_seconds: seconds until the platform deletes the checkpoint, 3,600 to 315,360,000; None: never.
            progress: called with (bytes sent, bytes in all) on the client's own thread, so it must return soon; None:
                nothing.

        Returns:
            An ImportCheckpointResponse: the checkpoint's path and its run.

        Raises:
            ValueError: `path` is not an adapter of plain files, or a value does not fit its field.
            FileNotFoundError: a file of the adapter is missing.
            APIStatusError: the platform refused the upload or the import.
            RequestFailedError: the adapter does not fit the base model; the message says what does not.
            APIConnectionError: the platform did not answer for `patience`.
        """
        files = AdapterFiles.find(path, config)
        request = import_request(base_model, name, user_metadata, rename_base_model, ttl_seconds)
        return self._run(self._import_checkpoint(files, request, progress))

    def create_rest_client(self) -> RestClient:
        """Returns a client for lookups, sharing and deletion on this client's connection; sends nothing."""
        return RestClient(connection=self._connection)

    async def get_server_capabilities_async(self) -> types.GetServerCapabilitiesResponse:
        """Like `get_server_capabilities` in an event loop; awaiting it gives the value."""
        return await self._start(self._get_server_capabilities())

    async def create_lora_training_client_async(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: Mapping[str, str] | None = None,
        *,
        alpha: int = 32,
        use_rslora: bool = False,
        target_modules: Sequence[str] | None = None,
    ) -> TrainingClient:
        """Like `create_lora_training_client` in an event loop; awaiting it gives the value."""
        flags = (train_unembed, train_mlp, train_attn)
        config = types.LoraConfig(rank, seed, *flags, alpha, use_rslora, target_modules)
        return await self._start(self._create_lora_training_client(base_model, config, user_metadata))

    async def create_training_client_from_state_async(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Like `create_training_client_from_state` in an event loop; awaiting it gives the value."""
        return await self._start(self._create_training_client_from_state(path, user_metadata, restore_optimizer=False))

    async def create_training_client_from_state_with_optimizer_async(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Like `create_training_client_from_state_with_optimizer` in an event loop; awaiting it gives the value."""
        return await self._start(self._create_training_client_from_state(path, user_metadata, restore_optimizer=True))

    async def create_sampling_client_async(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> SamplingClient:
        """Like `create_sampling_client` in an event loop; awaiting it gives the value."""
        return await self._start(self._create_sampling_client(model_path, base_model))

    async def import_checkpoint_async(
        self,
        path: str | Path,
        base_model: str,
        name: str,
        user_metadata: Mapping[str, str] | None = None,
        *,
        config: str | Path | None = None,
        rename_base_model: bool = False,
        ttl_seconds: int | None = None,
        progress: ReportBytes | None = None,
    ) -> types.ImportCheckpointResponse:
        """Like `import_checkpoint` in an event loop; awaiting it gives the value."""
        files = AdapterFiles.find(path, config)
        request = import_request(base_model, name, user_metadata, rename_base_model, ttl_seconds)
        return await self._start(self._import_checkpoint(files, request, progress))

    def close(self) -> None:
        """Ends the session and closes the connection, in a few seconds at most.

        Outstanding futures fail with TinkerError; the platform still carries their operations out. In a forked child
        nothing happens: the session and the connection are the parent's.
        """
        if not self._connection.loop.is_forked:
            self._run(self._connection.close())

    async def close_async(self) -> None:
        """Like `close` in an event loop; awaiting it gives the value."""
        if not self._connection.loop.is_forked:
            await self._start(self._connection.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close_async()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._connection.loop.run(coroutine)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> APIFuture[T]:
        return APIFuture(self._connection.loop, coroutine)

    async def _get_server_capabilities(self) -> types.GetServerCapabilitiesResponse:
        transport = self._connection.transport
        request = capability_pb2.GetServerCapabilitiesRequest()
        return _convert.capabilities(await transport.call(transport.capabilities.GetServerCapabilities, request))

    async def _create_lora_training_client(
        self, base_model: str, config: types.LoraConfig, user_metadata: Mapping[str, str] | None
    ) -> TrainingClient:
        with _convert.naming("create_lora_training_client"):
            request = training_pb2.CreateTrainingRunRequest(
                base_model=base_model,
                lora_config=_convert.lora_config_to_proto(config),
                user_metadata=user_metadata,
            )
        return await self._create_training_client(self._connection.transport.training.CreateTrainingRun, request)

    async def _create_training_client_from_state(
        self, path: str, user_metadata: Mapping[str, str] | None, *, restore_optimizer: bool
    ) -> TrainingClient:
        with _convert.naming("create_training_client_from_state"):
            request = training_pb2.CreateTrainingRunFromCheckpointRequest(
                path=path, restore_optimizer=restore_optimizer, user_metadata=user_metadata
            )
        method = self._connection.transport.training.CreateTrainingRunFromCheckpoint
        return await self._create_training_client(method, request)

    async def _create_training_client(
        self,
        method: SubmitMethod,
        request: training_pb2.CreateTrainingRunRequest | training_pb2.CreateTrainingRunFromCheckpointRequest,
    ) -> TrainingClient:
        session = await self._connection.session()
        request.session_id = session.session_id
        request.training_run_seq_id = next(session.training_run_seq_ids)
        created = await session.carry_out(
            f"{session.session_id}:train:{request.training_run_seq_id}:0",
            method,
            request,
            training_pb2.CreateTrainingRunResponse,
            slot=nullcontext(),
        )
        return TrainingClient(self._connection, session, created.training_run)

    async def _import_checkpoint(
        self, files: AdapterFiles, request: checkpoint_pb2.ImportCheckpointRequest, progress: ReportBytes | None
    ) -> types.ImportCheckpointResponse:
        imported = await import_adapter(self._connection, files, request, progress)
        return types.ImportCheckpointResponse(imported.path, _catalog_convert.training_run(imported.training_run))

    async def _create_sampling_client(self, model_path: str | None, base_model: str | None) -> SamplingClient:
        if (model_path is None) == (base_model is None):
            raise ValueError(
                f"model_path: must be given without base_model, or left out (got {model_path!r} and {base_model!r})"
            )
        return await SamplingClient.open(self._connection, model_path=model_path, base_model=base_model)
