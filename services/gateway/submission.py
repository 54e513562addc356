"""Submission: validated requests become queued jobs, and their operations are returned.

The application functions behind every front: tenant in, operation out. A training request whose content is refused
is queued in its run's order all the same, recorded with its error, so that the client's next operation goes on.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import assert_never

from google.protobuf.message import Message

from services.core import chunks
from services.core.config import GatewaySettings
from services.core.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PlatformError
from services.core.names import MAX_SAMPLE_SEQ_ID, MAX_SEQ_ID, OperationName, session_of, training_run_id
from services.core.queue.enqueueing import request_digest
from services.core.queue.limits import LoadLimits
from services.core.storage.open import room_for_work
from services.core.unnamed_weights import weights_name
from services.gateway.responses import whole_bytes
from services.gateway.stores import Stores
from services.gateway.validation.abilities import SamplingRequest, check_abilities
from services.gateway.validation.fields import check_seq_id
from services.gateway.validation.result_size import check_result_size, most_tokens
from services.gateway.validation.sampling import check_compute_logprobs, check_merge_weights, check_sample
from services.gateway.validation.training import RunRequest, check_run_request, training_path
from services.gateway.work import Work
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, operation_pb2, sampling_pb2, training_pb2

CreateRequest = training_pb2.CreateTrainingRunRequest | training_pb2.CreateTrainingRunFromCheckpointRequest

_JOB_FIELDS = {
    field.message_type.full_name: field.name
    for field in job_pb2.Job.DESCRIPTOR.oneofs_by_name["request"].fields
    if field.message_type is not None
}


class Submission:
    """Accepts operations."""

    def __init__(self, stores: Stores, settings: GatewaySettings) -> None:
        self.work = Work()
        self._stores = stores
        self._limits = LoadLimits.of(settings)
        self._room = room_for_work(settings)
        self._max_result_bytes = settings.max_result_bytes
        self._whole_bytes = whole_bytes(settings)

    async def create_run(
        self, tenant: str, request: CreateRequest, run: training_pb2.TrainingRun
    ) -> operation_pb2.Operation:
        """Enters a run and queues its creation, operation 0 of its log; a resend gets the seed that was drawn first."""
        digest = request_digest(request)
        await self._stores.catalog.add_run(tenant, run)
        recorded = await self._stores.catalog.run_record(run.training_run_id, tenant)
        match request:
            case training_pb2.CreateTrainingRunRequest():
                request.lora_config.CopyFrom(recorded.lora_config)
            case training_pb2.CreateTrainingRunFromCheckpointRequest():
                pass
            case _:
                assert_never(request)
        job = _job(OperationName(run.training_run_id, 0), tenant, request)
        job.base_model = recorded.base_model
        limits = await self._stores.workers.limits(recorded.base_model, job_pb2.WORKER_KIND_TRAINER)
        return await self._enqueue_training(job, digest, request, limits.base_model)

    async def import_checkpoint(
        self, tenant: str, request: checkpoint_pb2.ImportCheckpointRequest
    ) -> operation_pb2.Operation:
        """Queues operation 0 of a run that is entered once a trainer has read and saved its adapter."""
        run_id = training_run_id(request.session_id, request.training_run_seq_id)
        job = _job(OperationName(run_id, 0), tenant, request)
        job.base_model = request.base_model
        limits = await self._stores.workers.limits(request.base_model, job_pb2.WORKER_KIND_TRAINER)
        return await self._enqueue_training(job, request_digest(request), request, limits.base_model)

    async def train(self, tenant: str, request: RunRequest) -> operation_pb2.Operation:
        """Queues an operation on a run.

        Raises:
            NotFoundError: the run, or a checkpoint's run, is not this tenant's.
            InvalidArgumentError: the request's content; the operation is recorded as failed.
            FailedPreconditionError: the run's session has ended.
            AlreadyExistsError, FailedPreconditionError, ResourceExhaustedError: as RunLogs.enqueue says.
        """
        base_model = await self._base_model(tenant, request)
        if request.HasField("seq_id"):
            operation, refusal = await self._train_at(tenant, request, base_model, request_digest(request))
        else:
            operation, refusal = await self._train_next(tenant, request, base_model)
        if refusal is not None:
            raise refusal
        return operation

    async def enter(
        self, tenant: str, request: RunRequest, refusal: InvalidArgumentError | None = None
    ) -> operation_pb2.Operation:
        """Queues an operation on a run at the request's seq_id; a refused operation is returned as failed.

        Args:
            tenant: whose run it is.
            request: the request, with a seq_id.
            refusal: why the operation fails without further checks: what its sender asks for has no form in `request`.

        Raises:
            NotFoundError: the run is not this tenant's.
            InvalidArgumentError: the seq_id.
            FailedPreconditionError: the run's session has ended.
            AlreadyExistsError, FailedPreconditionError, ResourceExhaustedError: as RunLogs.enqueue says.
        """
        base_model = await self._base_model(tenant, request)
        operation, _ = await self._train_at(tenant, request, base_model, request_digest(request), refusal)
        return operation

    async def sample(self, tenant: str, request: SamplingRequest, *, streamed: bool = False) -> operation_pb2.Operation:
        """Queues a generation, a scoring or a merge; `streamed` if its tokens are wanted as they come.

        Raises:
            NotFoundError: the sampling session is not this tenant's.
            InvalidArgumentError: the request's content.
            FailedPreconditionError: the session has ended.
            AlreadyExistsError, ResourceExhaustedError: as SampleQueues.enqueue says.
        """
        stores = self._stores
        sampling, location = await stores.catalog.sampling_session(request.sampling_session_id, tenant)
        await stores.sessions.check_not_ended(session_of(request.sampling_session_id))
        if not request.HasField("seq_id"):
            request.seq_id = secrets.randbelow(MAX_SEQ_ID)
        check_seq_id("seq_id", request.seq_id, 0, MAX_SAMPLE_SEQ_ID)
        limits = await stores.workers.limits(sampling.base_model, job_pb2.WORKER_KIND_SAMPLER)
        digest = request_digest(request)
        size = request.ByteSize()
        await self.work.on(tenant, size, _check_sampling, request, location, limits, self._max_result_bytes)
        if isinstance(request, sampling_pb2.SampleRequest) and not request.sampling_params.HasField("seed"):
            request.sampling_params.seed = secrets.randbits(62)
        name = OperationName(request.sampling_session_id, request.seq_id)
        if isinstance(request, sampling_pb2.MergeWeightsRequest):
            await stores.catalog.count_merge(tenant, str(name))
        job = _job(name, tenant, request)
        job.checkpoint_location = location
        job.streamed = streamed
        self._room.check()
        accepted = await stores.sample_queues.enqueue(
            job,
            digest=digest,
            method=_method(request),
            base_model=limits.base_model,
            cost=_cost(request, limits),
            limits=self._limits,
        )
        return accepted or await stores.operations.get(str(name), tenant, whole_bytes=self._whole_bytes)

    async def _base_model(self, tenant: str, request: RunRequest) -> str:
        """The base model of a request's run, to which work may be added."""
        run = await self._stores.catalog.run_record(request.training_run_id, tenant)
        await self._stores.sessions.check_not_ended(session_of(run.training_run_id))
        return run.base_model

    async def _train_next(
        self, tenant: str, request: RunRequest, base_model: str
    ) -> tuple[operation_pb2.Operation, PlatformError | None]:
        while True:
            request.seq_id = max(1, await self._stores.run_logs.next_seq_id(request.training_run_id))
            try:
                return await self._train_at(tenant, request, base_model, secrets.token_hex(16))
            except AlreadyExistsError:
                continue  # another call took this seq_id meanwhile

    async def _train_at(
        self,
        tenant: str,
        request: RunRequest,
        base_model: str,
        digest: str,
        refusal: PlatformError | None = None,
    ) -> tuple[operation_pb2.Operation, PlatformError | None]:
        """The operation at the request's seq_id, and why it is refused."""
        check_seq_id("seq_id", request.seq_id, 1)
        limits = await self._stores.workers.limits(base_model, job_pb2.WORKER_KIND_TRAINER)
        if refusal is None:
            try:
                await self.work.on(tenant, request.ByteSize(), check_run_request, request, limits)
                await self._complete(tenant, request)
            except (InvalidArgumentError, NotFoundError) as error:
                refusal = error
        job = _job(OperationName(request.training_run_id, request.seq_id), tenant, request)
        return await self._enqueue_training(job, digest, request, limits.base_model, refusal), refusal

    async def _complete(self, tenant: str, request: RunRequest) -> None:
        """Fills in what the client left to the server, and checks whose the other run is; most kinds need neither."""
        if isinstance(request, training_pb2.LoadStateRequest):
            path = training_path("path", request.path)
            await self._check_may_load(path, tenant)
            request.path = str(path)
        elif isinstance(request, training_pb2.SaveWeightsForSamplerRequest):
            request.name = request.name or weights_name(request.seq_id)

    async def _check_may_load(self, path: TinkerPath, tenant: str) -> None:
        """Refuses a checkpoint that cannot be there for this tenant when its turn comes.

        A tenant's own may still be waiting to be saved; another tenant's must be published already.
        """
        try:
            await self._stores.catalog.run_record(path.training_run_id, tenant)
        except NotFoundError:
            await self._stores.catalog.checkpoints.get(path, tenant)

    async def _enqueue_training(
        self,
        job: job_pb2.Job,
        digest: str,
        request: Message,
        base_model: str,
        refusal: PlatformError | None = None,
    ) -> operation_pb2.Operation:
        self._room.check()
        accepted = await self._stores.run_logs.enqueue(
            job,
            digest=digest,
            method=_method(request),
            base_model=base_model,
            limits=self._limits,
            refusal=refusal,
        )
        return accepted or await self._stores.operations.get(job.operation, job.tenant, whole_bytes=self._whole_bytes)


def _check_sampling(
    request: SamplingRequest, location: str, limits: job_pb2.WorkerStatus, max_result_bytes: int
) -> None:
    """Refuses a request that is not valid, or that the samplers cannot carry out; `location` is its checkpoint's."""
    match request:
        case sampling_pb2.SampleRequest():
            check_sample(request, limits)
            check_result_size(request, limits, max_result_bytes)
        case sampling_pb2.ComputeLogprobsRequest():
            check_compute_logprobs(request, limits)
        case sampling_pb2.MergeWeightsRequest():
            check_merge_weights(has_checkpoint=bool(location))
        case _:
            assert_never(request)
    check_abilities(request, has_checkpoint=bool(location), limits=limits)


def _cost(request: SamplingRequest, limits: job_pb2.WorkerStatus) -> int:
    """Most tokens that a sampling request may have computed; 1 for a merge, which computes none."""
    match request:
        case sampling_pb2.SampleRequest():
            return chunks.length(request.prompt) + max(request.num_samples, 1) * most_tokens(request, limits)
        case sampling_pb2.ComputeLogprobsRequest():
            return chunks.length(request.prompt)
        case sampling_pb2.MergeWeightsRequest():
            return 1
        case _:
            assert_never(request)


def _job(name: OperationName, tenant: str, request: Message) -> job_pb2.Job:
    job = job_pb2.Job(operation=str(name), tenant=tenant)
    job.create_time.FromDatetime(datetime.now(UTC))
    getattr(job, _JOB_FIELDS[request.DESCRIPTOR.full_name]).CopyFrom(request)
    return job


def _method(request: Message) -> str:
    return request.DESCRIPTOR.name.removesuffix("Request")
