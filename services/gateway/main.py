"""The gateway process: one event loop with the gRPC server, the HTTP port and the event reader."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from datetime import timedelta

import structlog

from services.core.catalog.identity import Identity
from services.core.config import GatewaySettings
from services.core.errors import InternalError, PlatformError
from services.core.process.server import GrpcServer, until_stopped
from services.core.process.telemetry import configure_logging
from services.core.queue.connection import TRANSIENT_ERRORS, RedisConnection
from services.core.retention import KEEP_FINISHED
from services.core.storage.open import open_storage
from services.gateway.creation import Creation
from services.gateway.http.app import http_server
from services.gateway.http.backend import Backend
from services.gateway.malloc import give_freed_memory_back
from services.gateway.rpc.admission import AdmissionInterceptor
from services.gateway.rpc.auth import Authenticator
from services.gateway.rpc.capability import CapabilityServicer
from services.gateway.rpc.checkpoint import CheckpointServicer
from services.gateway.rpc.operation import OperationServicer
from services.gateway.rpc.sampling import SamplingServicer
from services.gateway.rpc.session import SessionServicer
from services.gateway.rpc.training import TrainingServicer
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from tinker_proto.v1 import (
    capability_pb2_grpc,
    checkpoint_pb2_grpc,
    operation_pb2_grpc,
    sampling_pb2_grpc,
    session_pb2_grpc,
    training_pb2_grpc,
)

SERVICES = tuple(
    f"tinker.v1.{name}Service" for name in ("Capability", "Checkpoint", "Operation", "Sampling", "Session", "Training")
)
SWEEP_EVERY = timedelta(hours=1)
EXPIRE_EVERY = timedelta(seconds=5)

_log = structlog.get_logger(__name__)


async def serve(settings: GatewaySettings) -> None:
    """Runs the gateway until SIGTERM or SIGINT."""
    configure_logging(settings, "gateway")
    _allow_many_connections()
    give_freed_memory_back()
    connection = RedisConnection.open(settings.redis_url)
    await Identity(connection, open_storage(settings)).establish()
    stores = Stores.open(settings, connection)
    position = await stores.events.start()
    revoked = await stores.revocations.start()
    server = grpc_server(settings, stores)
    port = await server.start(settings.grpc_port, SERVICES)
    backend = Backend.open(settings, stores)
    http = http_server(backend, connection)
    loops = [
        asyncio.create_task(stores.events.run(position)),
        asyncio.create_task(stores.tokens.run()),
        asyncio.create_task(stores.revocations.run(revoked)),
        asyncio.create_task(_sweep(stores)),
        asyncio.create_task(remove_expired(stores)),
        asyncio.create_task(http.serve()),
    ]
    stopped = asyncio.create_task(until_stopped())
    _log.info("serving", grpc=f"{settings.host}:{port}", http=f"{settings.host}:{settings.http_port}")
    await asyncio.wait({stopped, *loops}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("draining", seconds=settings.drain_seconds)
    http.should_exit = True
    stores.events.shut()
    await server.drain()
    failures = [loop.exception() for loop in loops if loop.done()]
    for task in (stopped, *loops[:-1]):
        task.cancel()
    await asyncio.gather(stopped, *loops, return_exceptions=True)
    backend.work.close()
    await connection.close()
    if failures:
        raise InternalError("a loop of the gateway ended, and the gateway with it") from failures[0]


def grpc_server(settings: GatewaySettings, stores: Stores) -> GrpcServer:
    """The gRPC server with every service of the contract; not started yet."""
    auth = Authenticator(stores.api_keys)
    submission = Submission(stores, settings)
    creation = Creation(stores, submission)
    wrapped = GrpcServer(settings, [AdmissionInterceptor(auth, stores.revocations, settings)])
    server = wrapped.server
    capability_pb2_grpc.add_CapabilityServiceServicer_to_server(CapabilityServicer(stores, auth), server)
    checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(CheckpointServicer(stores, auth, submission), server)
    operation_pb2_grpc.add_OperationServiceServicer_to_server(OperationServicer(stores, auth, settings), server)
    sampling_pb2_grpc.add_SamplingServiceServicer_to_server(
        SamplingServicer(stores, auth, submission, creation, settings), server
    )
    session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(stores, auth), server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(
        TrainingServicer(stores, auth, submission, creation), server
    )
    return wrapped


def _allow_many_connections() -> None:
    """Every request that waits for a result holds a socket: as many as the machine allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems name a limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _sweep(stores: Stores) -> None:
    """Removes what has had its day: results, uploads, exports, pins of those who are gone, old sessions, idle runs."""
    while True:
        try:
            await stores.blobs.sweep("results", KEEP_FINISHED)
            await asyncio.to_thread(stores.uploads.sweep)
            await asyncio.to_thread(stores.exports.sweep)
            await stores.pins.forget_gone()
            tenants = await stores.api_keys.tenants()
            await stores.sessions.forget_old(tenants)
            for run in await stores.catalog.forget_idle_runs(tenants):
                await asyncio.to_thread(stores.snapshots.remove, run)
        except (PlatformError, *TRANSIENT_ERRORS) as error:
            _log.warning("not everything was swept, trying again in an hour", error=str(error))
        await asyncio.sleep(SWEEP_EVERY.total_seconds())


async def remove_expired(stores: Stores) -> None:
    """Removes expired checkpoints, unneeded unnamed weights, and files that no path names and nobody pins any more."""
    while True:
        try:
            await stores.catalog.checkpoints.remove_expired()
            await stores.catalog.unnamed_weights.remove_unneeded()
            await stores.pins.remove_unpinned()
        except (PlatformError, *TRANSIENT_ERRORS) as error:
            _log.warning("expired checkpoints stay for now", error=str(error))
        await asyncio.sleep(EXPIRE_EVERY.total_seconds())
