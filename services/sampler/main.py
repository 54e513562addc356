"""The sampler process: loads a base model, announces it, and serves its sampling queue until told to stop."""

from __future__ import annotations

import asyncio

import structlog

from services.core.config import SamplerSettings, parse_base_model
from services.core.process.presence import Presence, worker_name
from services.core.process.server import until_stopped
from services.core.process.telemetry import configure_logging
from services.core.process.workers import WorkerDirectory
from services.core.queue.connection import RedisConnection
from services.core.queue.liveness import Contact
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.sample_queue import SampleQueues
from services.core.queue.token_stream import TokenStream
from services.core.storage.blobs import BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.exports import ExportStore
from services.core.storage.open import open_storage
from services.model.base import load_base_model
from services.model.device import choose_device
from services.model.tokenizer_files import store_tokenizer
from services.sampler.engine.native import SamplerEngine
from services.sampler.merge_jobs import Merges
from services.sampler.worker import SamplerWorker
from tinker_proto.internal.v1 import job_pb2

_log = structlog.get_logger(__name__)


async def serve(settings: SamplerSettings, base_model: str) -> None:
    """Runs a sampler for one base model (NAME=DIR, DIR, or a Hugging Face name) until SIGTERM or SIGINT."""
    configure_logging(settings, "sampler")
    name, source = parse_base_model(base_model)
    worker = worker_name("sampler")
    base = load_base_model(source, name=name, device=choose_device(settings.device))
    engine = SamplerEngine(
        base,
        max_sequences=settings.max_sequences,
        max_tokens_per_step=settings.max_tokens_per_step,
        max_cached_tokens=settings.max_cached_tokens,
        max_adapters=settings.max_adapters,
        deterministic=settings.deterministic,
    )
    connection = RedisConnection.open(settings.redis_url)
    storage = open_storage(settings)
    blobs = BlobStore(storage)
    payloads = Payloads(blobs)
    tokenizer_blob = await store_tokenizer(base.tokenizer_files, blobs)
    checkpoints = CheckpointStore(storage)
    serving = SamplerWorker(
        worker,
        base,
        engine,
        SampleQueues(connection, payloads),
        OperationStore(connection, payloads),
        checkpoints,
        Merges(base, checkpoints, ExportStore(storage)),
        TokenStream(connection),
        Contact(connection, settings.lease_seconds),
        lease_s=settings.lease_seconds,
    )

    def status() -> job_pb2.WorkerStatus:
        return job_pb2.WorkerStatus(
            worker=worker,
            kind=job_pb2.WORKER_KIND_SAMPLER,
            base_model=base.name,
            max_context_length=engine.max_context_length,
            vocab_size=base.vocab_size,
            slots=settings.max_sequences,
            slots_used=serving.sequences_used,
            tokenizer_blob=tokenizer_blob,
        )

    presence = Presence(settings, WorkerDirectory(connection), status)
    await presence.start()
    loops = asyncio.create_task(serving.run())
    stopped = asyncio.create_task(until_stopped())
    await asyncio.wait({loops, stopped}, return_when=asyncio.FIRST_COMPLETED)
    await presence.leave()
    loops.cancel()
    stopped.cancel()
    await asyncio.gather(loops, stopped, return_exceptions=True)
    await connection.close()
    if not loops.cancelled():
        loops.result()
