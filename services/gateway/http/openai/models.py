"""GET /v1/models: the base models that are served, and the checkpoints of the caller."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.core.catalog.pages import PageRequest
from services.core.process.workers import supported_models
from services.gateway.http.backend import Backend
from services.gateway.http.openai.targets import Targets
from tinker_proto.path import TinkerPath

MOST_CHECKPOINTS = 1000


class Models:
    """The endpoints."""

    def __init__(self, backend: Backend, targets: Targets) -> None:
        self._backend = backend
        self._targets = targets

    async def list(self, request: Request) -> Response:
        """Base models, then the newest checkpoints."""
        tenant = await self._backend.tenant(request)
        served = supported_models(await self._backend.stores.workers.live())
        models = [_entry(model.model_name, 0, "platform") for model in served if model.sampleable]
        found, _ = await self._backend.stores.catalog.checkpoint_page(tenant, "", PageRequest(MOST_CHECKPOINTS))
        models += [_entry(item.tinker_path, item.time.seconds, tenant) for item in found]
        return JSONResponse({"object": "list", "data": models})

    async def get(self, request: Request) -> Response:
        """One of them."""
        tenant = await self._backend.tenant(request)
        name = request.path_params["model"]
        await self._targets.version(tenant, name)
        if not name.startswith("tinker://"):
            return JSONResponse(_entry(name, 0, "platform"))
        stored = await self._backend.stores.catalog.checkpoints.get(TinkerPath.parse(name), tenant)
        return JSONResponse(_entry(name, stored.checkpoint.time.seconds, tenant))


def _entry(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
