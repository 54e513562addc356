"""Creation of training runs, fresh or from a checkpoint, and of sampling sessions.

The application functions behind every front: tenant and request in, what was made out. Making the same thing again
gives the same thing.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from services.core.catalog.checkpoints import StoredCheckpoint
from services.core.errors import InvalidArgumentError, NotFoundError
from services.core.names import OperationName, sampling_session_id, training_run_id
from services.core.process.workers import registered
from services.core.unnamed_weights import location_of_name
from services.gateway.stores import Stores
from services.gateway.submission import CreateRequest, Submission
from services.gateway.validation.fields import check_metadata, check_seq_id, parse_path
from services.gateway.validation.training import check_lora_config, training_path
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import CheckpointKind, TinkerPath
from tinker_proto.v1 import operation_pb2, sampling_pb2, training_pb2

DEFAULT_ALPHA = 32


class Creation:
    """Makes runs and sampling sessions."""

    def __init__(self, stores: Stores, submission: Submission) -> None:
        self._stores = stores
        self._submission = submission

    async def training_run(
        self, tenant: str, request: training_pb2.CreateTrainingRunRequest
    ) -> operation_pb2.Operation:
        """Creates a run with a fresh adapter.

        Raises:
            NotFoundError: the session is not this tenant's.
            InvalidArgumentError: the request's content.
            FailedPreconditionError: the session has ended.
        """
        await self._check_create(request, tenant)
        if not request.base_model:
            raise InvalidArgumentError.at("base_model", "required; get_server_capabilities lists the base models")
        limits = await self._stores.workers.serving(request.base_model, job_pb2.WORKER_KIND_TRAINER, "base_model")
        request.base_model = registered(request.base_model, limits)
        config = _completed(request.lora_config)
        check_lora_config(config, limits)
        return await self._submission.create_run(tenant, request, _new_run(request, request.base_model, config))

    async def training_run_from_checkpoint(
        self, tenant: str, request: training_pb2.CreateTrainingRunFromCheckpointRequest
    ) -> operation_pb2.Operation:
        """Creates a run that starts from a checkpoint.

        Raises:
            NotFoundError: the session is not this tenant's, or there is no such checkpoint for it.
            InvalidArgumentError: the request's content.
            FailedPreconditionError: the session has ended.
        """
        await self._check_create(request, tenant)
        path = training_path("path", request.path)
        checkpoint = (await self._stores.catalog.checkpoints.get(path, tenant)).checkpoint
        await self._stores.workers.serving(checkpoint.base_model, job_pb2.WORKER_KIND_TRAINER, "path")
        request.path = str(path)
        run = _new_run(request, checkpoint.base_model, checkpoint.lora_config)
        return await self._submission.create_run(tenant, request, run)

    async def sampling_session(
        self, tenant: str, request: sampling_pb2.CreateSamplingSessionRequest, follows: OperationName | None = None
    ) -> sampling_pb2.SamplingSession:
        """Opens a sampling session on a base model or a checkpoint.

        One that `follows` the save of its checkpoint goes on with what the run later saves inflight.

        Raises:
            NotFoundError: the session is not this tenant's, or there is no such checkpoint for it.
            InvalidArgumentError: the request's content.
            FailedPreconditionError: the session has ended.
        """
        await self._stores.sessions.open(request.session_id, tenant)
        check_seq_id("sampling_session_seq_id", request.sampling_session_seq_id, 0)
        sampling = sampling_pb2.SamplingSession(
            sampling_session_id=sampling_session_id(request.session_id, request.sampling_session_seq_id),
            base_model=request.base_model,
        )
        location, field = "", "base_model"
        if request.WhichOneof("source") == "model_path":
            stored, field = await self._kept(request.model_path, tenant, request.session_id), "model_path"
            sampling.base_model = stored.checkpoint.base_model
            sampling.model_path = stored.checkpoint.tinker_path
            location = stored.location
        elif not request.base_model:
            raise InvalidArgumentError.at("base_model", "required unless model_path is set")
        status = await self._stores.workers.serving(sampling.base_model, job_pb2.WORKER_KIND_SAMPLER, field)
        sampling.base_model = registered(sampling.base_model, status)
        sampling.create_time.FromDatetime(datetime.now(UTC))
        catalog, run = self._stores.catalog, ""
        if follows is not None:
            run = follows.scope
            await catalog.publish_inflight(run, follows.seq_id, location, sampling.model_path)
        await catalog.add_sampling_session(tenant, sampling, location, run)
        return (await catalog.sampling_session(sampling.sampling_session_id, tenant))[0]

    async def _kept(self, path: str, tenant: str, session_id: str) -> StoredCheckpoint:
        """The checkpoint or the unnamed weights of a path, the files kept for a session."""
        parsed = parse_path("model_path", path)
        if parsed.kind is CheckpointKind.EXTERNAL_WEIGHTS:
            rule = "a training or sampler checkpoint: external weights are only to be downloaded"
            raise InvalidArgumentError.must_be("model_path", rule, path, reason="EXTERNAL_WEIGHTS")
        try:
            return await self._pinned(parsed, tenant, session_id)
        except NotFoundError as missing:
            location = location_of_name(parsed.training_run_id, parsed.name)
            if not location or parsed.kind is CheckpointKind.WEIGHTS:
                raise
            if not await self._owns(tenant, parsed.training_run_id):
                raise missing from None
        return await self._stores.catalog.unnamed_weights.use(location, tenant)

    async def _owns(self, tenant: str, run: str) -> bool:
        try:
            await self._stores.catalog.run_record(run, tenant)
        except NotFoundError:
            return False
        return True

    async def _pinned(self, parsed: TinkerPath, tenant: str, session_id: str) -> StoredCheckpoint:
        """The checkpoint of a path, its files pinned.

        The two-part form means a sampler checkpoint if there is one of that name, else a training checkpoint.
        """
        checkpoints = self._stores.catalog.checkpoints
        if parsed.kind is not None:
            return await checkpoints.pin(parsed, tenant, session_id)
        sampler, training = (
            TinkerPath(parsed.training_run_id, kind, parsed.name)
            for kind in (CheckpointKind.SAMPLER_WEIGHTS, CheckpointKind.WEIGHTS)
        )
        try:
            return await checkpoints.pin(sampler, tenant, session_id)
        except NotFoundError:
            return await checkpoints.pin(training, tenant, session_id)

    async def _check_create(self, request: CreateRequest, tenant: str) -> None:
        await self._stores.sessions.open(request.session_id, tenant)
        check_seq_id("training_run_seq_id", request.training_run_seq_id, 0)
        check_metadata("user_metadata", request.user_metadata)


def _completed(config: training_pb2.LoraConfig) -> training_pb2.LoraConfig:
    """The config with every absent field decided; the seed is drawn."""
    completed = training_pb2.LoraConfig(alpha=DEFAULT_ALPHA, use_rslora=False)
    if not config.target_modules:
        completed.MergeFrom(training_pb2.LoraConfig(train_mlp=True, train_attn=True, train_unembed=True))
    if not config.HasField("seed"):
        completed.seed = secrets.randbits(62)
    completed.MergeFrom(config)
    return completed


def _new_run(request: CreateRequest, base_model: str, config: training_pb2.LoraConfig) -> training_pb2.TrainingRun:
    run = training_pb2.TrainingRun(
        training_run_id=training_run_id(request.session_id, request.training_run_seq_id),
        base_model=base_model,
        lora_config=config,
        user_metadata=request.user_metadata,
    )
    run.create_time.FromDatetime(datetime.now(UTC))
    return run
