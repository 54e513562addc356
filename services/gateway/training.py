"""tinker.v1.TrainingService: creates runs and queues operations on them."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from services.core.errors import InvalidArgumentError
from services.core.names import training_run_id
from services.core.server import Context
from services.gateway.auth import Authenticator
from services.gateway.paging import page_request, page_size, seq_id_of
from services.gateway.stores import Stores
from services.gateway.submission import CreateRequest, Submission
from services.gateway.validation.fields import check_metadata, check_seq_id
from services.gateway.validation.training import RunRequest, check_lora_config, training_path
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import operation_pb2, training_pb2, training_pb2_grpc

DEFAULT_RUNS_PER_PAGE = 20
DEFAULT_METRICS_PER_PAGE = 1000
DEFAULT_ALPHA = 32


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Every call validates, queues and returns at once."""

    def __init__(self, stores: Stores, auth: Authenticator, submission: Submission) -> None:
        self._stores = stores
        self._auth = auth
        self._submission = submission

    async def CreateTrainingRun(
        self, request: training_pb2.CreateTrainingRunRequest, context: Context
    ) -> operation_pb2.Operation:
        """Creates a run with a fresh adapter."""
        tenant = await self._auth.tenant(context)
        await self._check_create(request, tenant)
        if not request.base_model:
            raise InvalidArgumentError.at("base_model", "is missing; get_server_capabilities lists the base models")
        limits = await self._stores.workers.serving(request.base_model, job_pb2.WORKER_KIND_TRAINER, "base_model")
        config = _completed(request.lora_config)
        check_lora_config(config, limits)
        run = _new_run(request, request.base_model, config)
        return await self._submission.create_run(tenant, request, run)

    async def CreateTrainingRunFromCheckpoint(
        self, request: training_pb2.CreateTrainingRunFromCheckpointRequest, context: Context
    ) -> operation_pb2.Operation:
        """Creates a run that starts from a checkpoint."""
        tenant = await self._auth.tenant(context)
        await self._check_create(request, tenant)
        path = training_path("path", request.path)
        checkpoint = (await self._stores.catalog.checkpoints.get(path, tenant)).checkpoint
        await self._stores.workers.serving(checkpoint.base_model, job_pb2.WORKER_KIND_TRAINER, "path")
        request.path = str(path)
        run = _new_run(request, checkpoint.base_model, checkpoint.lora_config)
        return await self._submission.create_run(tenant, request, run)

    async def GetTrainingRun(
        self, request: training_pb2.GetTrainingRunRequest, context: Context
    ) -> training_pb2.TrainingRun:
        """A run of the caller's tenant."""
        tenant = await self._auth.tenant(context)
        return await self._stores.catalog.run(request.training_run_id, tenant)

    async def ListTrainingRuns(
        self, request: training_pb2.ListTrainingRunsRequest, context: Context
    ) -> training_pb2.ListTrainingRunsResponse:
        """The tenant's runs, newest first."""
        tenant = await self._auth.tenant(context)
        wanted = page_request(request.page_size, request.page_token, DEFAULT_RUNS_PER_PAGE)
        runs, page = await self._stores.catalog.run_page(tenant, wanted)
        return training_pb2.ListTrainingRunsResponse(
            training_runs=runs, next_page_token=page.next_page_token, total_size=page.total_size
        )

    async def ListTrainingMetrics(
        self, request: training_pb2.ListTrainingMetricsRequest, context: Context
    ) -> training_pb2.ListTrainingMetricsResponse:
        """What a run of the caller's tenant has measured, oldest first."""
        tenant = await self._auth.tenant(context)
        size, after = page_size(request.page_size, DEFAULT_METRICS_PER_PAGE), seq_id_of(request.page_token)
        await self._stores.catalog.run_record(request.training_run_id, tenant)
        entries, more = await self._stores.run_metrics.after(request.training_run_id, after, size)
        token = str(entries[-1].seq_id) if more else ""
        return training_pb2.ListTrainingMetricsResponse(training_metrics=entries, next_page_token=token)

    async def ForwardBackward(
        self, request: training_pb2.ForwardBackwardRequest, context: Context
    ) -> operation_pb2.Operation:
        """Queues a loss and its gradient."""
        return await self._train(request, context)

    async def Forward(self, request: training_pb2.ForwardRequest, context: Context) -> operation_pb2.Operation:
        """Queues a loss."""
        return await self._train(request, context)

    async def OptimStep(self, request: training_pb2.OptimStepRequest, context: Context) -> operation_pb2.Operation:
        """Queues an optimizer step."""
        return await self._train(request, context)

    async def SaveState(self, request: training_pb2.SaveStateRequest, context: Context) -> operation_pb2.Operation:
        """Queues the writing of a training checkpoint."""
        return await self._train(request, context)

    async def LoadState(self, request: training_pb2.LoadStateRequest, context: Context) -> operation_pb2.Operation:
        """Queues the loading of a training checkpoint."""
        return await self._train(request, context)

    async def SaveWeightsForSampler(
        self, request: training_pb2.SaveWeightsForSamplerRequest, context: Context
    ) -> operation_pb2.Operation:
        """Queues the writing of a sampler checkpoint."""
        return await self._train(request, context)

    async def _train(self, request: RunRequest, context: Context) -> operation_pb2.Operation:
        return await self._submission.train(await self._auth.tenant(context), request)

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
