"""What queue tests share: jobs, and the stores over one connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.core.errors import PlatformError
from services.core.names import OperationName
from services.core.queue.connection import RedisConnection
from services.core.queue.limits import LoadLimits
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.run_log import Lease, RunLogs
from services.core.queue.sample_queue import SampleEntry, SampleQueues
from services.core.storage.blobs import BlobStore
from services.core.storage.local import LocalStorage
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import operation_pb2, sampling_pb2, training_pb2

RUN = "session:train:0"
SAMPLING = "session:sample:0"
BASE = "base"
LEASE_MS = 60_000
LIMITS = LoadLimits(
    operations_of_run=100,
    operations_of_tenant=1000,
    operations=1000,
    samples_of_tenant=1000,
    samples=1000,
    request_bytes_of_tenant=1 << 30,
    request_bytes=1 << 30,
)


@dataclass(frozen=True)
class Queues:
    logs: RunLogs
    samples: SampleQueues
    operations: OperationStore
    connection: RedisConnection
    limits: LoadLimits = LIMITS

    async def enqueue(
        self,
        seq_id: int,
        *,
        run: str = RUN,
        tenant: str = "alice",
        digest: str = "d",
        size: int = 0,
        refusal: PlatformError | None = None,
    ) -> bool:
        request = training_pb2.SaveStateRequest(training_run_id=run, seq_id=seq_id, name="x" * size)
        job = job_pb2.Job(operation=f"{run}:{seq_id}", tenant=tenant, save_state=request)
        accepted = await self.logs.enqueue(
            job, digest=digest, method="SaveState", base_model=BASE, limits=self.limits, refusal=refusal
        )
        return accepted is not None

    async def enqueue_sample(
        self,
        seq_id: int,
        *,
        tenant: str = "alice",
        location: str = "",
        num_samples: int = 1,
        cost: int = 10,
        size: int = 0,
    ) -> bool:
        request = sampling_pb2.SampleRequest(sampling_session_id=SAMPLING, seq_id=seq_id, num_samples=num_samples)
        request.sampling_params.stop.strings.append("x" * size)
        job = job_pb2.Job(operation=f"{SAMPLING}:{seq_id}", tenant=tenant, sample=request, checkpoint_location=location)
        accepted = await self.samples.enqueue(
            job, digest="d", method="Sample", base_model=BASE, cost=cost, limits=self.limits
        )
        return accepted is not None

    async def take(self, worker: str = "s1", free: int = 10) -> list[SampleEntry]:
        await self.samples.join(BASE)
        return await self.samples.take(worker, BASE, free=free, block_ms=1)

    async def finish_sample(self, entry: SampleEntry) -> None:
        result = await self.operations.result(sampling_pb2.SampleResponse())
        await self.samples.complete(BASE, entry, result)

    async def state(self, seq_id: int, run: str = RUN) -> operation_pb2.OperationState.ValueType:
        return (await self.operations.get(str(OperationName(run, seq_id)), "alice")).state

    async def finish(self, lease: Lease, seq_id: int) -> None:
        result = await self.operations.result(training_pb2.SaveStateResponse(path=f"p{seq_id}"))
        await self.logs.complete(lease, seq_id, result)


def open_queues(connection: RedisConnection, data_dir: Path) -> Queues:
    payloads = Payloads(BlobStore(LocalStorage(data_dir)))
    return Queues(
        RunLogs(connection, payloads),
        SampleQueues(connection, payloads),
        OperationStore(connection, payloads),
        connection,
    )
