"""A trainer's worker over a real queue and a real engine, for tests of what it does with many runs at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.core.config import Settings
from services.core.errors import PlatformError
from services.core.process.device_thread import DeviceThread
from services.core.queue.connection import RedisConnection
from services.core.queue.limits import LoadLimits
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.run_log import RunLogs
from services.core.storage.blobs import BlobStore
from services.core.storage.local import LocalStorage
from services.model.base import BaseModel
from services.trainer.engine.local import TrainerEngine
from services.trainer.engine.pass_job import Outcome, Work
from services.trainer.main import assemble
from services.trainer.worker import TrainerWorker
from tests.trainer.data import random_data
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import data_pb2, operation_pb2, training_pb2

DEADLINE_S = 60


class WatchedEngine(TrainerEngine):
    """An engine that remembers which runs shared each pass."""

    def __init__(self, base: BaseModel, *, row_tokens: int) -> None:
        super().__init__(base, row_tokens=row_tokens)
        self.passes: list[list[str]] = []

    def run_pass(self, work: Sequence[Work], *, row_tokens: int | None = None) -> list[Outcome | PlatformError]:
        self.passes.append([item.training_run_id for item in work])
        return super().run_pass(work, row_tokens=row_tokens)


@dataclass
class Queue:
    """What clients would have queued."""

    base_model: str
    logs: RunLogs
    operations: OperationStore
    next_seq_ids: dict[str, int] = field(default_factory=dict)

    async def create(self, run: str, tenant: str, *, rank: int = 4) -> str:
        session, _, number = run.split(":")
        request = training_pb2.CreateTrainingRunRequest(
            session_id=session,
            training_run_seq_id=int(number),
            base_model=self.base_model,
            lora_config=training_pb2.LoraConfig(rank=rank, seed=5),
        )
        return await self._enqueue(run, tenant, create_training_run=request)

    async def forward_backward(
        self, run: str, tenant: str, lengths: Sequence[int] = (6, 4), data: Sequence[data_pb2.Datum] = ()
    ) -> str:
        request = training_pb2.ForwardBackwardRequest(
            training_run_id=run, data=data or random_data("cross_entropy", lengths), loss_fn="cross_entropy"
        )
        return await self._enqueue(run, tenant, forward_backward=request)

    async def optim_step(self, run: str, tenant: str) -> str:
        params = training_pb2.AdamParams(
            learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0
        )
        return await self._enqueue(
            run, tenant, optim_step=training_pb2.OptimStepRequest(training_run_id=run, adam_params=params)
        )

    async def save_state(self, run: str, tenant: str, name: str, *, overwrite: bool = False) -> str:
        request = training_pb2.SaveStateRequest(training_run_id=run, name=name, overwrite=overwrite)
        return await self._enqueue(run, tenant, save_state=request)

    async def load_state(self, run: str, tenant: str, path: str) -> str:
        request = training_pb2.LoadStateRequest(training_run_id=run, path=path, restore_optimizer=True)
        return await self._enqueue(run, tenant, load_state=request)

    async def result(self, name: str, tenant: str) -> operation_pb2.Operation:
        """The operation once it is done."""
        found: operation_pb2.Operation | None = None

        async def is_done() -> bool:
            nonlocal found
            found = await self.operations.get(name, tenant)
            return found.done

        deadline = time.monotonic() + DEADLINE_S
        while not await is_done():
            assert time.monotonic() < deadline, f"{name} has no result after {DEADLINE_S} s"
            await asyncio.sleep(0.005)
        assert found is not None
        return found

    async def _enqueue(self, run: str, tenant: str, **request: Any) -> str:
        seq_id = self.next_seq_ids.get(run, 0)
        self.next_seq_ids[run] = seq_id + 1
        job = job_pb2.Job(operation=f"{run}:{seq_id}", tenant=tenant, **request)
        limits = LoadLimits.of(Settings())
        await self.logs.enqueue(job, digest=str(seq_id), method="Train", base_model=self.base_model, limits=limits)
        return job.operation


def loss_of(operation: operation_pb2.Operation) -> float:
    """The loss that a forward_backward which succeeded reports."""
    assert not operation.HasField("error"), operation.error.message
    response = training_pb2.ForwardBackwardResponse()
    assert operation.response.Unpack(response)
    return response.metrics["loss:sum"]


def open_queue(connection: RedisConnection, base: BaseModel, data_dir: Path) -> Queue:
    payloads = Payloads(BlobStore(LocalStorage(data_dir)))
    return Queue(base.name, RunLogs(connection, payloads), OperationStore(connection, payloads))


@asynccontextmanager
async def serving(
    connection: RedisConnection,
    engine: TrainerEngine,
    queue: Queue,
    data_dir: Path,
    *,
    name: str = "worker",
    dies: bool = False,
    **settings: Any,
) -> AsyncIterator[TrainerWorker]:
    """Serves until the block ends, then stops as a trainer stops; one that `dies` just ends, with its leases."""
    device = DeviceThread()
    worker = assemble(Settings(data_dir=data_dir, **settings), name, engine, device, connection)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        if dies:
            task.cancel()
            await asyncio.wait([task])
        else:
            worker.stop()
            assert await task
        device.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition that has to be asked for, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
