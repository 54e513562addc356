"""Training runs as the SDK lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.errors import NotFoundError
from services.gateway.http.backend import Backend
from services.gateway.http.sdk.checkpoints import checkpoint_fields
from services.gateway.http.sdk.paging import cursor_fields, offset_page, refuse_foreign_scope
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import training_pb2

DEFAULT_RUNS_PER_PAGE = 20


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    catalog = backend.stores.catalog

    async def listing(request: Request) -> Response:
        """The tenant's training runs."""
        tenant = await backend.tenant(request)
        refuse_foreign_scope(request)
        requested = offset_page(request, DEFAULT_RUNS_PER_PAGE)
        runs, page = await catalog.run_page(tenant, requested)
        content = [await _run_fields(backend, run, tenant) for run in runs]
        return JSONResponse({"training_runs": content, "cursor": cursor_fields(requested, page.total_size)})

    async def get(request: Request) -> Response:
        """A training run."""
        tenant = await backend.tenant(request)
        refuse_foreign_scope(request)
        return JSONResponse(await _run_fields(backend, await catalog.run(request.path_params["run"], tenant), tenant))

    return [Route("/training_runs", listing), Route("/training_runs/{run}", get)]


async def _run_fields(backend: Backend, run: training_pb2.TrainingRun, tenant: str) -> dict[str, Any]:
    return {
        "training_run_id": run.training_run_id,
        "base_model": run.base_model,
        "model_owner": tenant,
        "is_lora": True,
        "corrupted": False,
        "lora_rank": run.lora_config.rank,
        "last_request_time": run.last_request_time.ToJsonString(),
        "last_checkpoint": await _newest(backend, run.last_checkpoint, tenant),
        "last_sampler_checkpoint": await _newest(backend, run.last_sampler_checkpoint, tenant),
        "user_metadata": dict(run.user_metadata),
    }


async def _newest(backend: Backend, path: str, tenant: str) -> dict[str, Any] | None:
    if not path:
        return None
    try:
        stored = await backend.stores.catalog.checkpoints.get(TinkerPath.parse(path), tenant)
    except NotFoundError:  # deleted meanwhile
        return None
    return checkpoint_fields(stored.checkpoint)
