"""Everything that a sampler reads and writes, opened once per process."""

from __future__ import annotations

from dataclasses import dataclass

from services.core.queue.connection import RedisConnection
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.sample_queue import SampleQueues
from services.core.queue.token_stream import TokenStream
from services.core.storage.blobs import BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.exports import ExportStore
from services.core.storage.interface import Storage


@dataclass(frozen=True)
class SamplerStores:
    """The platform's state as a sampler sees it."""

    queues: SampleQueues
    operations: OperationStore
    tokens: TokenStream
    checkpoints: CheckpointStore
    exports: ExportStore

    @classmethod
    def open(cls, connection: RedisConnection, storage: Storage) -> SamplerStores:
        """Opens all stores over one Redis server and one storage."""
        payloads = Payloads(BlobStore(storage))
        return cls(
            queues=SampleQueues(connection, payloads),
            operations=OperationStore(connection, payloads),
            tokens=TokenStream(connection),
            checkpoints=CheckpointStore(storage),
            exports=ExportStore(storage),
        )
