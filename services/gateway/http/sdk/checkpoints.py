"""Checkpoints as the SDK lists, shares, limits and deletes them. Doing any of it again changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.catalog.pages import Cursor, PageRequest
from services.gateway.http.backend import Backend
from services.gateway.http.body import read_json, takes
from services.gateway.http.sdk.fields import Int64, SdkFields
from services.gateway.http.sdk.paging import cursor_fields, offset_page
from services.gateway.rpc.paging import MAX_PAGE_SIZE
from services.gateway.validation.fields import check_ttl, parse_path
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2

ONE = "/training_runs/{run}/checkpoints/{kind}/{name}"
DEFAULT_CHECKPOINTS_PER_PAGE = 100
_TYPES = {
    checkpoint_pb2.CHECKPOINT_TYPE_TRAINING: "training",
    checkpoint_pb2.CHECKPOINT_TYPE_SAMPLER: "sampler",
    checkpoint_pb2.CHECKPOINT_TYPE_EXTERNAL: "external",
}


class Ttl(SdkFields):
    """PUT .../ttl."""

    ttl_seconds: Int64 | None


class WeightsInfo(SdkFields):
    """POST weights_info."""

    tinker_path: str


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    checkpoints, catalog = backend.stores.catalog.checkpoints, backend.stores.catalog

    async def listing(request: Request) -> Response:
        """The tenant's checkpoints."""
        tenant = await backend.tenant(request)
        requested = offset_page(request, DEFAULT_CHECKPOINTS_PER_PAGE)
        found, page = await catalog.checkpoint_page(tenant, "", requested)
        cursor = cursor_fields(requested, page.total_size)
        return JSONResponse({"checkpoints": [checkpoint_fields(entry) for entry in found], "cursor": cursor})

    async def of_run(request: Request) -> Response:
        """The checkpoints of a run."""
        tenant = await backend.tenant(request)
        found: list[checkpoint_pb2.Checkpoint] = []
        after: Cursor | None = None
        while True:
            entries, page = await catalog.checkpoint_page(
                tenant, request.path_params["run"], PageRequest(MAX_PAGE_SIZE, after)
            )
            found.extend(entries)
            after = Cursor.parse(page.next_page_token)
            if after is None:
                return JSONResponse({"checkpoints": [checkpoint_fields(entry) for entry in found]})

    async def delete(request: Request) -> Response:
        """Deletes a checkpoint."""
        tenant = await backend.tenant(request)
        removed = await checkpoints.remove(path_of(request), tenant)
        await backend.stores.pins.remove_if_unpinned(removed.location)
        return Response(status_code=204)

    async def publish(request: Request) -> Response:
        """Lets every tenant read a checkpoint, or takes that back."""
        tenant = await backend.tenant(request)
        await checkpoints.set_public(path_of(request), tenant, public=request.method == "POST")
        return Response(status_code=204)

    @takes(Ttl)
    async def limit(request: Request) -> Response:
        """Sets or removes when a checkpoint deletes itself."""
        tenant = await backend.tenant(request)
        seconds = (await read_json(request, Ttl)).ttl_seconds
        check_ttl("ttl_seconds", checkpoint_pb2.SetCheckpointTtlRequest(ttl_seconds=seconds))
        await checkpoints.set_lifetime(path_of(request), tenant, seconds)
        return Response(status_code=204)

    @takes(WeightsInfo)
    async def info(request: Request) -> Response:
        """What a checkpoint holds."""
        tenant = await backend.tenant(request)
        path = parse_path("tinker_path", (await read_json(request, WeightsInfo)).tinker_path)
        stored = (await checkpoints.get(path, tenant)).checkpoint
        config = stored.lora_config
        return JSONResponse(
            {
                "base_model": stored.base_model,
                "optimizer_config": {"type": "adamw"},
                "is_lora": True,
                "lora_rank": config.rank,
                "train_unembed": config.train_unembed,
                "train_mlp": config.train_mlp,
                "train_attn": config.train_attn,
            }
        )

    return [
        Route("/checkpoints", listing),
        Route("/training_runs/{run}/checkpoints", of_run),
        Route(ONE, delete, methods=["DELETE"]),
        Route(f"{ONE}/publish", publish, methods=["POST", "DELETE"]),
        Route(f"{ONE}/ttl", limit, methods=["PUT"]),
        Route("/weights_info", info, methods=["POST"]),
    ]


def path_of(request: Request) -> TinkerPath:
    """The checkpoint that a request's URL names.

    Raises:
        InvalidArgumentError: it names none.
    """
    parts = request.path_params
    return parse_path("tinker_path", f"tinker://{parts['run']}/{parts['kind']}/{parts['name']}")


def checkpoint_fields(checkpoint: checkpoint_pb2.Checkpoint) -> dict[str, Any]:
    """A checkpoint as the SDK knows it."""
    return {
        "checkpoint_id": checkpoint.checkpoint_id,
        "checkpoint_type": _TYPES[checkpoint.checkpoint_type],
        "time": checkpoint.time.ToJsonString(),
        "tinker_path": checkpoint.tinker_path,
        "size_bytes": checkpoint.size_bytes,
        "public": checkpoint.public,
        "user_metadata": dict(checkpoint.user_metadata) or None,
        "expires_at": checkpoint.expires_at.ToJsonString() if checkpoint.HasField("expires_at") else None,
    }
