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
    """One platform, seen with one API key."""

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
            user_metadata: labels of the session.
            base_url: grpc://host:port, or grpcs:// for TLS; None: TINKER_GRPC_URL, else grpc://127.0.0.1:50051.
            api_key: None: TINKER_API_KEY.
            patience: how long the platform may be unreachable, after a first contact, before calls fail.

        Raises:
            ValueError: the address is not one.
            AuthenticationError: there is no key.
        """
        self._connection = Connection(base_url, api_key, user_metadata=user_metadata, patience=patience)

    def get_server_capabilities(self) -> types.GetServerCapabilitiesResponse:
        """The base models that are served at this moment, and their limits."""
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
        """Starts a training run with a fresh adapter on a frozen base model; LoraConfig says what its shape means."""
        flags = {"train_unembed": train_unembed, "train_mlp": train_mlp, "train_attn": train_attn}
        config = types.LoraConfig(
            rank, seed, **flags, alpha=alpha, use_rslora=use_rslora, target_modules=target_modules
        )
        return self._run(self._create_lora_training_client(base_model, config, user_metadata))

    def create_training_client_from_state(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Starts a training run from a checkpoint's weights; base model and adapter shape are the checkpoint's."""
        return self._run(self._create_training_client_from_state(path, user_metadata, restore_optimizer=False))

    def create_training_client_from_state_with_optimizer(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """Starts a training run that goes on where the checkpoint's stood, optimizer included."""
        return self._run(self._create_training_client_from_state(path, user_metadata, restore_optimizer=True))

    def create_sampling_client(self, model_path: str | None = None, base_model: str | None = None) -> SamplingClient:
        """Samples from a checkpoint or from a base model: give exactly one."""
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
        """Makes a training run with a training checkpoint from a LoRA adapter in PEFT's format.

        Args:
            path: the adapter's directory, or its .safetensors file. bfloat16 and float16 are taken too, and become
                float32.
            base_model: the base model that it is for, as the platform calls it.
            name: the checkpoint's name.
            user_metadata: labels of run and checkpoint.
            config: adapter_config.json of a .safetensors file, if it is not beside it.
            rename_base_model: take it though its configuration names another base model; its shapes must fit.
            ttl_seconds: when the checkpoint deletes itself; None: never.
            progress: called with the bytes sent and the bytes in all.

        Raises:
            ValueError, FileNotFoundError: there is no adapter of plain files at `path`.
            RequestFailedError: the adapter does not fit the base model; says what of it.
        """
        files = AdapterFiles.find(path, config)
        request = import_request(base_model, name, user_metadata, rename_base_model, ttl_seconds)
        return self._run(self._import_checkpoint(files, request, progress))

    def create_rest_client(self) -> RestClient:
        """Looks at training runs and checkpoints."""
        return RestClient(connection=self._connection)

    async def get_server_capabilities_async(self) -> types.GetServerCapabilitiesResponse:
        """`get_server_capabilities`, awaited."""
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
        """`create_lora_training_client`, awaited."""
        flags = {"train_unembed": train_unembed, "train_mlp": train_mlp, "train_attn": train_attn}
        config = types.LoraConfig(
            rank, seed, **flags, alpha=alpha, use_rslora=use_rslora, target_modules=target_modules
        )
        return await self._start(self._create_lora_training_client(base_model, config, user_metadata))

    async def create_training_client_from_state_async(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """`create_training_client_from_state`, awaited."""
        return await self._start(self._create_training_client_from_state(path, user_metadata, restore_optimizer=False))

    async def create_training_client_from_state_with_optimizer_async(
        self, path: str, user_metadata: Mapping[str, str] | None = None
    ) -> TrainingClient:
        """`create_training_client_from_state_with_optimizer`, awaited."""
        return await self._start(self._create_training_client_from_state(path, user_metadata, restore_optimizer=True))

    async def create_sampling_client_async(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> SamplingClient:
        """`create_sampling_client`, awaited."""
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
        """`import_checkpoint`, awaited."""
        files = AdapterFiles.find(path, config)
        request = import_request(base_model, name, user_metadata, rename_base_model, ttl_seconds)
        return await self._start(self._import_checkpoint(files, request, progress))

    def close(self) -> None:
        """Ends the session; what is still outstanding fails here, and is carried out there."""
        self._run(self._connection.close())

    async def close_async(self) -> None:
        """`close`, awaited."""
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
            raise ValueError("give either model_path or base_model, and not both")
        return await SamplingClient.open(self._connection, model_path=model_path, base_model=base_model)
