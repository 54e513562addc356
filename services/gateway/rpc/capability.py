"""tinker.v1.CapabilityService: what can be trained and sampled, and tokenizers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.core.process.server import Context
from services.core.process.workers import supported_models
from services.gateway.rpc.auth import Authenticator
from services.gateway.stores import Stores
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import capability_pb2, capability_pb2_grpc


class CapabilityServicer(capability_pb2_grpc.CapabilityServiceServicer):
    """Answers from what live workers announce."""

    def __init__(self, stores: Stores, auth: Authenticator) -> None:
        self._stores = stores
        self._auth = auth

    async def GetServerCapabilities(
        self, request: capability_pb2.GetServerCapabilitiesRequest, context: Context
    ) -> capability_pb2.GetServerCapabilitiesResponse:
        """The union of the live workers."""
        await self._auth.tenant(context)
        models = supported_models(await self._stores.workers.live())
        return capability_pb2.GetServerCapabilitiesResponse(supported_models=models)

    async def GetTokenizer(
        self, request: capability_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[capability_pb2.GetTokenizerResponse]:
        """The files that a worker of the base model has put into the blob store."""
        await self._auth.tenant(context)
        status = await self._stores.workers.any_kind(request.base_model, "base_model")
        files = job_pb2.TokenizerFiles.FromString(await self._stores.blobs.get(status.tokenizer_blob))
        for name in sorted(files.files):
            yield capability_pb2.GetTokenizerResponse(file_name=name, content=files.files[name])
