"""Everything that the gateway's servicers read and write, opened once per process."""

from __future__ import annotations

from dataclasses import dataclass

from services.core.catalog.api_keys import ApiKeys
from services.core.catalog.download_links import DownloadLinks
from services.core.catalog.pins import Pins
from services.core.catalog.reserved_samplers import ReservedSamplers
from services.core.catalog.revocations import Revocations
from services.core.catalog.run_metrics import RunMetrics
from services.core.catalog.runs import Catalog
from services.core.catalog.sessions import Sessions
from services.core.catalog.tenant_work import TenantWork
from services.core.config import GatewaySettings
from services.core.process.workers import WorkerDirectory
from services.core.queue.connection import RedisConnection
from services.core.queue.events import EventHub
from services.core.queue.finished import FinishedOperations
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.run_log import RunLogs
from services.core.queue.sample_queue import SampleQueues
from services.core.queue.token_stream import TokenStream
from services.core.storage.blobs import BlobStore
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.exports import ExportStore
from services.core.storage.open import open_storage
from services.core.storage.snapshot_store import SnapshotStore
from services.core.storage.uploads import UploadStore


@dataclass(frozen=True)
class Stores:
    """The platform's state as the gateway sees it."""

    api_keys: ApiKeys
    blobs: BlobStore
    catalog: Catalog
    checkpoints: CheckpointStore
    finished: FinishedOperations
    download_links: DownloadLinks
    events: EventHub
    exports: ExportStore
    operations: OperationStore
    pins: Pins
    reserved_samplers: ReservedSamplers
    revocations: Revocations
    run_logs: RunLogs
    run_metrics: RunMetrics
    sample_queues: SampleQueues
    sessions: Sessions
    snapshots: SnapshotStore
    tokens: TokenStream
    uploads: UploadStore
    workers: WorkerDirectory

    @classmethod
    def open(cls, settings: GatewaySettings, connection: RedisConnection) -> Stores:
        """Opens all stores over one Redis server and one data directory."""
        storage = open_storage(settings)
        blobs = BlobStore(storage)
        payloads, checkpoints = Payloads(blobs), CheckpointStore(storage)
        operations = OperationStore(connection, payloads)
        return cls(
            api_keys=ApiKeys(connection),
            blobs=blobs,
            catalog=Catalog(connection, settings),
            checkpoints=checkpoints,
            finished=FinishedOperations(connection),
            download_links=DownloadLinks(connection),
            events=EventHub(connection),
            exports=ExportStore(storage),
            operations=operations,
            pins=Pins(connection, checkpoints),
            reserved_samplers=ReservedSamplers(connection),
            revocations=Revocations(connection, TenantWork(connection, operations)),
            run_logs=RunLogs(connection, payloads),
            run_metrics=RunMetrics(connection),
            sample_queues=SampleQueues(connection, payloads),
            sessions=Sessions(connection, settings),
            snapshots=SnapshotStore(storage),
            tokens=TokenStream(connection),
            uploads=UploadStore(storage, settings.max_upload_bytes, settings.max_uploaded_bytes_per_tenant),
            workers=WorkerDirectory(connection),
        )
