"""Sampling sessions and requests on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.errors import InvalidArgumentError, quoted
from services.core.sampling_limits import NO_TARGET
from services.core.unnamed_weights import is_unnamed
from services.gateway.http.backend import Backend
from services.gateway.http.body import Fields, read_json, takes
from services.gateway.http.sdk.data import ModelInput, TensorFields
from services.gateway.http.sdk.fields import Int32, Int64, SampleSeqId, SdkFields, SeqId
from tinker_proto.tensor import from_array
from tinker_proto.v1 import data_pb2, sampling_pb2


class SamplingParamsFields(Fields):
    """How tokens are drawn."""

    max_tokens: Int32 | None = None
    seed: Int64 | None = None
    stop: str | list[str] | list[Int32] | None = None
    temperature: float = 1.0
    top_k: Int32 = -1
    top_p: float = 1.0

    def message(self) -> sampling_pb2.SamplingParams:
        """The message; a `stop` that is empty is present and stops nothing."""
        fields = self.model_dump(exclude={"stop"}, exclude_none=True)
        params = sampling_pb2.SamplingParams(**fields)
        if self.stop is None:
            return params
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        params.stop.SetInParent()
        params.stop.strings.extend(stop for stop in stops if isinstance(stop, str))
        params.stop.token_ids.extend(stop for stop in stops if isinstance(stop, int))
        return params


class Sample(SdkFields):
    """POST asample."""

    sampling_session_id: str
    seq_id: SampleSeqId
    num_samples: Int32 = 1
    prompt: ModelInput
    sampling_params: SamplingParamsFields
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Int32 = 0
    topk_sample_logprobs: Int32 = 0
    target_prompt_logprobs: TensorFields | None = None
    prompt_alt_tokens_k: Int32 = 0
    prompt_logprobs_last_n: Int32 | None = None
    record_stability_info: bool | None = None
    """Every sample's log-probabilities are in its result, so nothing more is recorded."""

    base_model: str | None = None
    model_path: str | None = None

    def message(self) -> sampling_pb2.SampleRequest:
        """The message; raises InvalidArgumentError for what has no counterpart here."""
        if self.prompt_logprobs_last_n is not None and self.target_prompt_logprobs is not None:
            rule = "absent with target_prompt_logprobs, which scores the whole prompt"
            raise InvalidArgumentError.must_be("prompt_logprobs_last_n", rule, self.prompt_logprobs_last_n)
        for name in ("base_model", "model_path"):
            if getattr(self, name) is not None:
                raise InvalidArgumentError.at(name, "not supported here: the sampling session determines the model")
        if self.num_samples < 1:
            raise InvalidArgumentError.must_be("num_samples", "at least 1", self.num_samples)
        message = sampling_pb2.SampleRequest(
            sampling_session_id=self.sampling_session_id,
            seq_id=self.seq_id,
            prompt=self.prompt.message("prompt"),
            num_samples=self.num_samples,
            sampling_params=self.sampling_params.message(),
            include_prompt_logprobs=bool(self.prompt_logprobs),
            topk_prompt_logprobs=self.topk_prompt_logprobs,
            topk_sample_logprobs=self.topk_sample_logprobs,
            prompt_logprobs_last_n=self.prompt_logprobs_last_n,
            prompt_alt_tokens_k=self.prompt_alt_tokens_k,
        )
        if self.target_prompt_logprobs is not None:
            message.target_prompt_logprobs.CopyFrom(_targets(self.target_prompt_logprobs))
        return message


class CreateSamplingSession(SdkFields):
    """POST create_sampling_session."""

    session_id: str
    sampling_session_seq_id: SeqId
    base_model: str | None = None
    model_path: str | None = None

    def message(self) -> sampling_pb2.CreateSamplingSessionRequest:
        """The message; a checkpoint says which base model it belongs to."""
        message = sampling_pb2.CreateSamplingSessionRequest(
            session_id=self.session_id, sampling_session_seq_id=self.sampling_session_seq_id
        )
        if self.model_path is not None:
            message.model_path = self.model_path
        elif self.base_model is not None:
            message.base_model = self.base_model
        return message


class JoinSamplingSession(SdkFields):
    """POST join_sampling_session."""

    sampling_session_id: str


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    catalog = backend.stores.catalog

    @takes(CreateSamplingSession)
    async def create(request: Request) -> Response:
        """Opens a sampling session."""
        tenant = await backend.tenant(request)
        fields = await read_json(request, CreateSamplingSession)
        sampling = await backend.creation.sampling_session(tenant, fields.message())
        wanted = fields.base_model
        if wanted is not None and not await backend.stores.workers.is_same(wanted, sampling.base_model):
            rule = f"the checkpoint's, {sampling.base_model!r}"
            raise InvalidArgumentError.must_be("base_model", rule, quoted(fields.base_model))
        content = {"type": "create_sampling_session", "sampling_session_id": sampling.sampling_session_id}
        return JSONResponse(content)

    @takes(JoinSamplingSession)
    async def join(request: Request) -> Response:
        """Counts one more client of a sampling session."""
        tenant = await backend.tenant(request)
        fields = await read_json(request, JoinSamplingSession)
        sampling, _ = await catalog.sampling_session(fields.sampling_session_id, tenant)
        return JSONResponse({"client_counter": await catalog.count_client(sampling.sampling_session_id)})

    async def get(request: Request) -> Response:
        """What a sampling session samples from."""
        tenant = await backend.tenant(request)
        sampling, location = await catalog.sampling_session(request.path_params["sampler"], tenant)
        content = {"sampler_id": sampling.sampling_session_id, "base_model": sampling.base_model}
        path = None if is_unnamed(location) else sampling.model_path or None
        return JSONResponse({**content, "model_path": path})

    @takes(Sample)
    async def sample(request: Request) -> Response:
        """Queues a generation."""
        tenant = await backend.tenant(request)
        message = (await read_json(request, Sample)).message()
        operation = await backend.submission.sample(tenant, message)
        sequences = [f"{operation.name}:{i}" for i in range(message.num_samples)]
        return JSONResponse({"request_id": operation.name, "sample_sequence_ids": sequences})

    return [
        Route("/create_sampling_session", create, methods=["POST"]),
        Route("/join_sampling_session", join, methods=["POST"]),
        Route("/samplers/{sampler}", get),
        Route("/asample", sample, methods=["POST"]),
    ]


def _targets(tensor: TensorFields) -> data_pb2.Tensor:
    """The SDK's [prompt length - 1, K], without the first position that nothing predicts, as our [prompt length, K].

    Raises:
        InvalidArgumentError: it is no such array.
    """
    field = "target_prompt_logprobs"
    shape = tensor.shape or []
    if tensor.sparse_crow_indices is not None or tensor.sparse_col_indices is not None:
        if tensor.dtype != "int64" or len(shape) != 2:
            got = f"{tensor.dtype} of shape {shape}"
            raise InvalidArgumentError.must_be(field, "int64 of shape [prompt length - 1, K]", got, reason="BAD_SHAPE")
        csr = data_pb2.SparseCsr(
            values=np.array(tensor.data, dtype="<i8").tobytes(),
            crow_indices=np.array([0, *(tensor.sparse_crow_indices or [])], dtype="<i8").tobytes(),
            col_indices=np.array(tensor.sparse_col_indices or [], dtype="<i8").tobytes(),
        )
        return data_pb2.Tensor(dtype=data_pb2.DATA_TYPE_INT64, shape=[shape[0] + 1, shape[1]], csr=csr)
    if tensor.dtype != "int64" or len(shape) != 2 or min(shape) < 0 or shape[0] * shape[1] != len(tensor.data):
        got = f"{tensor.dtype} of shape {shape} with {len(tensor.data)} elements"
        raise InvalidArgumentError.must_be(field, "int64 of shape [prompt length - 1, K]", got, reason="BAD_SHAPE")
    targets = np.array(tensor.data, dtype=np.int64).reshape(shape)
    return from_array(np.vstack([np.full((1, shape[1]), NO_TARGET), targets]))
