"""Training runs and what is done to them. Every call that is well-formed is answered with a future."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.catalog.reserved_samplers import ReservedSampler
from services.core.errors import InvalidArgumentError, quoted
from services.gateway.http.backend import Backend
from services.gateway.http.body import read_json, takes
from services.gateway.http.sdk.data import LossRequest, fill_loss
from services.gateway.http.sdk.run_calls import RunCalls
from services.gateway.http.sdk.training_fields import (
    CreateModel,
    GetInfo,
    LoadWeights,
    OptimStep,
    SaveExternal,
    SaveWeights,
    SaveWeightsForSampler,
)
from services.gateway.validation.training import RunRequest, training_path
from tinker_proto.sdk.v1 import sdk_pb2
from tinker_proto.v1 import operation_pb2, training_pb2


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    training = Training(backend)
    posts = {
        "/create_model": training.create_model,
        "/get_info": training.get_info,
        "/forward_backward": training.forward_backward,
        "/optim_step": training.optim_step,
        "/save_weights": training.save_weights,
        "/save_weights_for_sampler": training.save_weights_for_sampler,
        "/save_weights_external": training.save_weights_external,
        "/load_weights": training.load_weights,
    }
    return [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()]


class Training:
    """The endpoints of this group."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._calls = RunCalls(backend.submission)

    @takes(CreateModel)
    async def create_model(self, request: Request) -> Response:
        """A run with a fresh adapter."""
        tenant = await self._backend.tenant(request)
        fields = await read_json(request, CreateModel)
        return _future(await self._backend.creation.training_run(tenant, fields.message()))

    @takes(GetInfo)
    async def get_info(self, request: Request) -> Response:
        """A run's base model and adapter."""
        tenant = await self._backend.tenant(request)
        run = await self._backend.stores.catalog.run_record((await read_json(request, GetInfo)).model_id, tenant)
        return JSONResponse(
            {
                "type": "get_info",
                "model_data": {"model_name": run.base_model, "tokenizer_id": None},
                "model_id": run.training_run_id,
                "is_lora": True,
                "lora_rank": run.lora_config.rank,
                "model_name": run.base_model,
                "optimizer_config": {"type": "adamw"},
            }
        )

    @takes(sdk_pb2.ForwardBackwardRequest)
    async def forward_backward(self, request: Request) -> Response:
        """A loss, with or without its gradient."""
        tenant = await self._backend.tenant(request)
        limit = self._backend.settings.max_message_bytes
        sdk_request = await self._calls.read_loss(request, tenant, limit)
        message: LossRequest = (
            training_pb2.ForwardRequest() if sdk_request.forward_only else training_pb2.ForwardBackwardRequest()
        )
        message.training_run_id, message.seq_id = sdk_request.model_id, sdk_request.seq_id
        try:
            await self._backend.work.on(tenant, sdk_request.ByteSize(), fill_loss, message, sdk_request)
        except InvalidArgumentError as refusal:
            return await self._enter(tenant, message, refusal)
        return await self._enter(tenant, message)

    @takes(OptimStep)
    async def optim_step(self, request: Request) -> Response:
        """An optimizer step."""
        tenant = await self._backend.tenant(request)
        fields = await self._calls.read_json(request, OptimStep, tenant, training_pb2.OptimStepRequest)
        return await self._enter(tenant, fields.message(), fields.refusal())

    @takes(SaveWeights)
    async def save_weights(self, request: Request) -> Response:
        """A training checkpoint."""
        tenant = await self._backend.tenant(request)
        fields = await self._calls.read_json(request, SaveWeights, tenant, training_pb2.SaveStateRequest)
        return await self._enter(tenant, fields.message())

    @takes(SaveWeightsForSampler)
    async def save_weights_for_sampler(self, request: Request) -> Response:
        """A sampler checkpoint, or unnamed weights for a sampling session."""
        tenant = await self._backend.tenant(request)
        fields = await self._calls.read_json(
            request, SaveWeightsForSampler, tenant, training_pb2.SaveWeightsForSamplerRequest
        )
        message, refusal = fields.message(), fields.refusal()
        if fields.sampling_session_seq_id is not None and refusal is None:
            await self._backend.stores.catalog.run_record(fields.model_id, tenant)
            operation = f"{fields.model_id}:{fields.seq_id}"
            reserved = ReservedSampler(fields.sampling_session_seq_id, fields.kind == "inflight")
            await self._backend.stores.reserved_samplers.reserve(operation, reserved)
        return await self._enter(tenant, message, refusal)

    @takes(SaveExternal)
    async def save_weights_external(self, request: Request) -> Response:
        """A sampler checkpoint to be downloaded."""
        tenant = await self._backend.tenant(request)
        fields = await self._calls.read_json(request, SaveExternal, tenant, training_pb2.SaveWeightsForSamplerRequest)
        return await self._enter(tenant, fields.message())

    @takes(LoadWeights)
    async def load_weights(self, request: Request) -> Response:
        """A checkpoint into a run, or a new run from a checkpoint."""
        tenant = await self._backend.tenant(request)
        fields = await self._calls.read_json(request, LoadWeights, tenant, training_pb2.LoadStateRequest)
        if fields.model_id is not None:
            return await self._enter(tenant, fields.message(), fields.refusal())
        message = fields.creation()
        path = training_path("path", fields.path)
        base_model = (await self._backend.stores.catalog.checkpoints.get(path, tenant)).checkpoint.base_model
        wanted = fields.base_model
        if wanted is not None and not await self._backend.stores.workers.is_same(wanted, base_model):
            rule = f"the checkpoint's, {base_model!r}"
            raise InvalidArgumentError.must_be("base_model", rule, quoted(fields.base_model))
        return _future(await self._backend.creation.training_run_from_checkpoint(tenant, message))

    async def _enter(self, tenant: str, message: RunRequest, refusal: InvalidArgumentError | None = None) -> Response:
        return _future(await self._backend.submission.enter(tenant, message, refusal))


def _future(operation: operation_pb2.Operation) -> Response:
    return JSONResponse({"request_id": operation.name, "model_id": operation.name.rpartition(":")[0]})
