"""tinker.v1.TrainingService: creates runs and queues operations on them."""

from __future__ import annotations

from services.core.process.server import Context
from services.gateway.creation import Creation
from services.gateway.rpc.auth import Authenticator
from services.gateway.rpc.paging import fitting, page_request, page_size, seq_id_of
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from services.gateway.validation.training import RunRequest
from tinker_proto.v1 import operation_pb2, training_pb2, training_pb2_grpc

DEFAULT_RUNS_PER_PAGE = 20
DEFAULT_METRICS_PER_PAGE = 1000


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Every call validates, queues and returns at once."""

    def __init__(self, stores: Stores, auth: Authenticator, submission: Submission, creation: Creation) -> None:
        self._stores = stores
        self._auth = auth
        self._submission = submission
        self._creation = creation

    async def CreateTrainingRun(
        self, request: training_pb2.CreateTrainingRunRequest, context: Context
    ) -> operation_pb2.Operation:
        """Creates a run with a fresh adapter."""
        return await self._creation.training_run(await self._auth.tenant(context), request)

    async def CreateTrainingRunFromCheckpoint(
        self, request: training_pb2.CreateTrainingRunFromCheckpointRequest, context: Context
    ) -> operation_pb2.Operation:
        """Creates a run that starts from a checkpoint."""
        return await self._creation.training_run_from_checkpoint(await self._auth.tenant(context), request)

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
        requested = page_request(request.page_size, request.page_token, DEFAULT_RUNS_PER_PAGE)
        found, page = await self._stores.catalog.run_page(tenant, requested)
        runs, token = fitting(found, page, lambda run: run.training_run_id)
        return training_pb2.ListTrainingRunsResponse(
            training_runs=runs, next_page_token=token, total_size=page.total_size
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
