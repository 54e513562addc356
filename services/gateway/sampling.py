"""tinker.v1.SamplingService: opens sampling sessions and queues requests on them."""

from __future__ import annotations

from datetime import UTC, datetime

from services.core.catalog import StoredCheckpoint
from services.core.errors import InvalidArgumentError, NotFoundError
from services.core.names import sampling_session_id
from services.core.server import Context
from services.gateway.auth import Authenticator
from services.gateway.stores import Stores
from services.gateway.submission import SamplingRequest, Submission
from services.gateway.validation.fields import check_seq_id, parse_path
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import operation_pb2, sampling_pb2, sampling_pb2_grpc


class SamplingServicer(sampling_pb2_grpc.SamplingServiceServicer):
    """Sampling sessions pin their checkpoint when they are opened: what is saved later does not change them."""

    def __init__(self, stores: Stores, auth: Authenticator, submission: Submission) -> None:
        self._stores = stores
        self._auth = auth
        self._submission = submission

    async def CreateSamplingSession(
        self, request: sampling_pb2.CreateSamplingSessionRequest, context: Context
    ) -> sampling_pb2.SamplingSession:
        """Opens a sampling session on a base model or a checkpoint."""
        tenant = await self._auth.tenant(context)
        await self._stores.sessions.open(request.session_id, tenant)
        check_seq_id("sampling_session_seq_id", request.sampling_session_seq_id, 0)
        sampling = sampling_pb2.SamplingSession(
            sampling_session_id=sampling_session_id(request.session_id, request.sampling_session_seq_id),
            base_model=request.base_model,
        )
        location, field = "", "base_model"
        if request.WhichOneof("source") == "model_path":
            stored, field = await self._pinned(request.model_path, tenant), "model_path"
            sampling.base_model = stored.checkpoint.base_model
            sampling.model_path = stored.checkpoint.tinker_path
            location = stored.location
        elif not request.base_model:
            message = "is missing; allowed is exactly one of base_model and model_path"
            raise InvalidArgumentError.at("base_model", message)
        await self._stores.workers.serving(sampling.base_model, job_pb2.WORKER_KIND_SAMPLER, field)
        sampling.create_time.FromDatetime(datetime.now(UTC))
        await self._stores.catalog.add_sampling_session(tenant, sampling, location)
        return (await self._stores.catalog.sampling_session(sampling.sampling_session_id, tenant))[0]

    async def GetSamplingSession(
        self, request: sampling_pb2.GetSamplingSessionRequest, context: Context
    ) -> sampling_pb2.SamplingSession:
        """A sampling session of the caller's tenant."""
        tenant = await self._auth.tenant(context)
        return (await self._stores.catalog.sampling_session(request.sampling_session_id, tenant))[0]

    async def Sample(self, request: sampling_pb2.SampleRequest, context: Context) -> operation_pb2.Operation:
        """Queues a generation."""
        return await self._sample(request, context)

    async def ComputeLogprobs(
        self, request: sampling_pb2.ComputeLogprobsRequest, context: Context
    ) -> operation_pb2.Operation:
        """Queues a scoring."""
        return await self._sample(request, context)

    async def _sample(self, request: SamplingRequest, context: Context) -> operation_pb2.Operation:
        return await self._submission.sample(await self._auth.tenant(context), request)

    async def _pinned(self, path: str, tenant: str) -> StoredCheckpoint:
        """The checkpoint of a path; the two-part form means a sampler checkpoint if there is one of that name."""
        parsed = parse_path("model_path", path)
        if parsed.kind is not None:
            return await self._stores.catalog.checkpoint(parsed, tenant)
        try:
            sampler = TinkerPath(parsed.training_run_id, "sampler_weights", parsed.name)
            return await self._stores.catalog.checkpoint(sampler, tenant)
        except NotFoundError:
            training = TinkerPath(parsed.training_run_id, "weights", parsed.name)
            return await self._stores.catalog.checkpoint(training, tenant)
