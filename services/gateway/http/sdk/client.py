"""Start of an SDK client: its flags, and the base models that can be trained and sampled."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.process.workers import supported_models
from services.gateway.http.backend import Backend
from services.gateway.http.body import read_body

MAX_TELEMETRY_BYTES = 4 << 20

FLAGS = {
    "create_model_via_load_weights": True,
    "fwd_via_fwdbwd": True,
    "parallel_fwdbwd_chunks": True,
    "pjwt_auth_enabled": False,
    "proto_compress_fwdbwd": True,
    "proto_write_fwdbwd": True,
    "sample_join_sampling_session": True,
    "sample_use_retrieve_futures": True,
}
"""One request waits for all samples of a client, instead of one connection a sample. Releases before 0.25 send losses
as JSON unless they are told to write protobuf.
"""

DYNAMIC_FLAGS = {"refresh_interval_sec": 300, "sample_cancel_enabled": True, "sample_cancel_max_batch_size": 64}


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""

    async def config(request: Request) -> Response:
        """What the SDK may use."""
        await backend.tenant(request)
        return JSONResponse(FLAGS)

    async def dynamic_config(request: Request) -> Response:
        """What the SDK may use, asked for again and again."""
        await backend.tenant(request)
        return JSONResponse(DYNAMIC_FLAGS)

    async def telemetry(request: Request) -> Response:
        """Read and forgotten: nobody here evaluates it."""
        await backend.tenant(request)
        await read_body(request, MAX_TELEMETRY_BYTES)
        return JSONResponse({"status": "accepted"})

    async def capabilities(request: Request) -> Response:
        """The base models that are served."""
        await backend.tenant(request)
        known = [
            {
                "model_name": found.model_name,
                "max_context_length": found.max_context_length,
                "trainable": found.trainable,
                "sampleable": found.sampleable,
            }
            for found in supported_models(await backend.stores.workers.live())
        ]
        return JSONResponse({"supported_models": known})

    return [
        Route("/client/config", config, methods=["POST"]),
        Route("/client/dynamic_config", dynamic_config, methods=["POST"]),
        Route("/telemetry", telemetry, methods=["POST"]),
        Route("/get_server_capabilities", capabilities),
    ]
