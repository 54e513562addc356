"""The trainer process: loads a base model, announces it, and serves training runs until told to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

import structlog

from services.core.base_model_names import parse_worker_model
from services.core.catalog.checkpoints import StorageLimits
from services.core.catalog.identity import Identity
from services.core.catalog.runs import Catalog
from services.core.catalog.sessions import Sessions
from services.core.config import TrainerSettings
from services.core.process.device_thread import DeviceThread
from services.core.process.telemetry import configure_logging
from services.core.process.worker_server import WorkerServer, worker_name
from services.core.process.workers import WorkerDirectory
from services.core.queue.connection import RedisConnection
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.recovery_state import RecoveryStates
from services.core.queue.run_log import RunLogs
from services.core.queue.waiting_runs import WaitingRuns
from services.core.storage.blobs import BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.open import open_storage
from services.core.storage.snapshot_store import SnapshotStore
from services.core.storage.uploads import UploadStore
from services.model.tokenizer_files import store_tokenizer
from services.trainer.engine.factory import open_engine
from services.trainer.engine.interface import TrainerEngine
from services.trainer.holdings import Holdings, Limits, TrainingQueue
from services.trainer.job import JobRunner
from services.trainer.operation_kinds import BACKWARD_COST
from services.trainer.snapshot_policy import SnapshotPolicy
from services.trainer.snapshots import Snapshots
from services.trainer.worker import TrainerWorker
from tinker_proto.internal.v1 import job_pb2

_log = structlog.get_logger(__name__)


async def serve(settings: TrainerSettings, base_models: Sequence[str]) -> None:
    """Runs a trainer for one base model until SIGTERM or SIGINT.

    Args:
        settings: its settings.
        base_models: NAME=DIR, DIR, or a Hugging Face name; further ones give the same model further names.

    Raises:
        PlatformError: it cannot start.
    """
    model = parse_worker_model(base_models)
    configure_logging(settings, "trainer")
    worker = worker_name("trainer")
    connection, storage = RedisConnection.open(settings.redis_url), open_storage(settings)
    await Identity(connection, storage).check()
    engine, device = open_engine(settings, model), DeviceThread()
    tokenizer = await store_tokenizer(engine.info.tokenizer_files, BlobStore(storage))
    serving = assemble(settings, worker, engine, device, connection)

    def status() -> job_pb2.WorkerStatus:
        return job_pb2.WorkerStatus(
            worker=worker,
            kind=job_pb2.WORKER_KIND_TRAINER,
            base_model=engine.info.base_model,
            aliases=engine.info.aliases,
            max_context_length=engine.info.max_context_length,
            vocab_size=engine.info.vocab_size,
            max_lora_rank=settings.max_lora_rank,
            loss_fns=sorted(engine.info.loss_fns),
            target_modules=engine.info.target_modules,
            slots=settings.max_runs,
            slots_used=serving.runs_held,
            tokenizer_blob=tokenizer.for_clients,
            text_blob=tokenizer.for_texts,
            base_fingerprint=engine.info.fingerprint.value,
        )

    server = WorkerServer(settings, WorkerDirectory(connection), status)
    loops = await server.run(serving.run())
    serving.stop()
    device_is_free, _ = await asyncio.gather(loops, server.leave())
    await connection.close()
    if not device_is_free:
        _log.warning("the device is busy for longer than drain_seconds; what it does now will be done again elsewhere")
        os._exit(os.EX_OK)  # the interpreter would wait for the device's thread
    device.close()


def assemble(
    settings: TrainerSettings,
    worker: str,
    engine: TrainerEngine,
    device: DeviceThread,
    connection: RedisConnection,
    *,
    hesitate: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> TrainerWorker:
    """A worker with all its parts, over one Redis server and one data directory; `hesitate` as `Holdings` takes it."""
    storage = open_storage(settings)
    payloads = Payloads(BlobStore(storage))
    logs, uploads = RunLogs(connection, payloads), UploadStore(storage)
    base_model = engine.info.base_model
    waiting = WaitingRuns(
        connection, base_model, worker, int(settings.lease_seconds * 1000), aliases=engine.info.aliases
    )
    holdings = Holdings(
        worker,
        base_model,
        TrainingQueue(connection, waiting, logs, Sessions(connection)),
        Snapshots(engine, device, SnapshotStore(storage), RecoveryStates(connection, payloads)),
        SnapshotPolicy.of(settings),
        Limits(settings.max_runs, settings.lease_seconds, settings.idle_seconds),
        engine.memory_pressure,
        hesitate=hesitate,
    )
    return TrainerWorker(
        worker,
        holdings,
        JobRunner(
            engine,
            device,
            Catalog(connection),
            CheckpointStore(storage),
            uploads,
            StorageLimits(settings.max_stored_bytes_per_tenant, settings.max_checkpoints_per_tenant),
        ),
        connection,
        logs,
        OperationStore(connection, payloads),
        cycle_budget=BACKWARD_COST * engine.info.pass_tokens,
        drain_s=settings.drain_seconds,
    )
