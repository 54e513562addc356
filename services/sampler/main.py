"""The sampler process: opens an engine, announces it, and serves its base model's queue until told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.core.abilities import announcement
from services.core.base_model_names import parse_worker_model
from services.core.catalog.identity import Identity
from services.core.config import SamplerSettings
from services.core.process.telemetry import configure_logging
from services.core.process.worker_server import WorkerServer, worker_name
from services.core.process.workers import WorkerDirectory
from services.core.queue.connection import RedisConnection
from services.core.queue.liveness import Liveness
from services.core.storage.blobs import BlobStore
from services.core.storage.open import open_storage
from services.model.tokenizer_files import store_tokenizer
from services.sampler.engine.factory import open_engine
from services.sampler.stores import SamplerStores
from services.sampler.worker import SamplerWorker
from tinker_proto.internal.v1 import job_pb2


async def serve(settings: SamplerSettings, base_models: Sequence[str]) -> None:
    """Runs a sampler for one base model until SIGTERM or SIGINT.

    Args:
        settings: its settings.
        base_models: NAME=DIR, DIR, or a Hugging Face name; further ones give the same model further names.

    Raises:
        PlatformError: it cannot start.
    """
    model = parse_worker_model(base_models)
    configure_logging(settings, "sampler")
    worker = worker_name("sampler")
    connection, storage = RedisConnection.open(settings.redis_url), open_storage(settings)
    await Identity(connection, storage).check()
    engine = open_engine(settings, model)
    tokenizer = await store_tokenizer(engine.info.tokenizer_files, BlobStore(storage))
    liveness = Liveness(connection, settings.lease_seconds)
    serving = SamplerWorker(
        worker, engine, SamplerStores.open(connection, storage), liveness, lease_s=settings.lease_seconds
    )

    def status() -> job_pb2.WorkerStatus:
        return job_pb2.WorkerStatus(
            worker=worker,
            kind=job_pb2.WORKER_KIND_SAMPLER,
            base_model=engine.info.base_model,
            aliases=engine.info.aliases,
            max_context_length=engine.info.max_context_length,
            vocab_size=engine.info.vocab_size,
            slots=engine.info.max_sequences,
            slots_used=serving.sequences_used,
            tokenizer_blob=tokenizer.for_clients,
            text_blob=tokenizer.for_texts,
            base_fingerprint=engine.info.fingerprint.value,
            abilities=announcement(engine.info.abilities),
        )

    server = WorkerServer(settings, WorkerDirectory(connection), status)
    loops = await server.run(serving.run())
    await server.leave()
    loops.cancel()
    await asyncio.gather(loops, return_exceptions=True)
    await connection.close()
    if not loops.cancelled():
        loops.result()
