"""The trainer process: loads a base model, announces it, and serves training runs until told to stop."""

from __future__ import annotations

import asyncio

from services.core.blobs import BlobStore
from services.core.catalog import Catalog
from services.core.checkpoints import CheckpointStore
from services.core.config import Settings, parse_base_model
from services.core.connection import RedisConnection
from services.core.losses import LOSSES
from services.core.operations import OperationStore
from services.core.payloads import Payloads
from services.core.presence import Presence
from services.core.run_log import RunLogs
from services.core.server import until_stopped
from services.core.sessions import Sessions
from services.core.telemetry import configure_logging
from services.core.workers import WorkerDirectory
from services.model.announce import choose_device, store_tokenizer, worker_name
from services.model.base import load_base_model
from services.model.device import DeviceThread
from services.trainer.engine import TrainerEngine
from services.trainer.job import JobRunner
from services.trainer.worker import TrainerWorker
from tinker_proto.internal.v1 import job_pb2


async def serve(settings: Settings, base_model: str) -> None:
    """Runs a trainer for one base model (NAME=DIR, DIR, or a Hugging Face name) until SIGTERM or SIGINT."""
    configure_logging(settings, "trainer")
    name, source = parse_base_model(base_model)
    worker = worker_name("trainer")
    base = load_base_model(source, name=name, device=choose_device(settings.device))
    engine, device = TrainerEngine(base), DeviceThread()
    connection = RedisConnection.open(settings.redis_url)
    blobs = BlobStore(settings.blob_dir)
    payloads = Payloads(blobs)
    tokenizer_blob = await store_tokenizer(base, blobs)
    serving = TrainerWorker(
        worker,
        base.name,
        engine,
        device,
        JobRunner(engine, device, Catalog(connection), CheckpointStore(settings.checkpoint_dir)),
        connection,
        RunLogs(connection, payloads),
        OperationStore(connection, payloads),
        Sessions(connection),
        max_runs=settings.max_runs,
        lease_s=settings.lease_seconds,
    )

    def status() -> job_pb2.WorkerStatus:
        return job_pb2.WorkerStatus(
            worker=worker,
            kind=job_pb2.WORKER_KIND_TRAINER,
            base_model=base.name,
            max_context_length=base.max_context_length,
            vocab_size=base.vocab_size,
            max_lora_rank=settings.max_lora_rank,
            loss_fns=sorted(LOSSES),
            slots=settings.max_runs,
            slots_used=serving.runs_held,
            tokenizer_blob=tokenizer_blob,
        )

    presence = Presence(settings, WorkerDirectory(connection), status)
    await presence.start()
    loops = asyncio.create_task(serving.run())
    stopped = asyncio.create_task(until_stopped())
    await asyncio.wait({loops, stopped}, return_when=asyncio.FIRST_COMPLETED)
    await presence.leave()
    serving.stop()
    stopped.cancel()
    await loops
    device.close()
    await connection.close()
