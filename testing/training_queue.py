"""A training queue on a real Valkey, filled as clients fill it through a gateway."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.core.config import Settings
from services.core.queue.connection import RedisConnection
from services.core.queue.limits import LoadLimits
from services.core.queue.operations import OperationStore
from services.core.queue.payloads import Payloads
from services.core.queue.run_log import RunLogs
from services.core.storage.blobs import BlobStore
from services.core.storage.local import LocalStorage
from services.core.storage.uploads import CONFIG_FILE, MAX_BLOCK_BYTES, WEIGHTS_FILE, UploadStore
from services.core.unnamed_weights import weights_name
from services.model.base import BaseModel
from testing.training_data import random_data
from testing.waiting import until_true
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import checkpoint_pb2, data_pb2, operation_pb2, training_pb2


@dataclass
class Queue:
    """What clients would have queued."""

    base_model: str
    logs: RunLogs
    operations: OperationStore
    next_seq_ids: dict[str, int] = field(default_factory=dict)

    async def create(self, run: str, tenant: str, *, rank: int = 4) -> str:
        """Queues the creation of a run; returns the operation's name, as all below do."""
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
        """Queues a forward_backward on `data`, or on random data of `lengths`."""
        request = training_pb2.ForwardBackwardRequest(
            training_run_id=run, data=data or random_data("cross_entropy", lengths), loss_fn="cross_entropy"
        )
        return await self._enqueue(run, tenant, forward_backward=request)

    async def optim_step(self, run: str, tenant: str) -> str:
        """Queues an optim_step."""
        params = training_pb2.AdamParams(
            learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0
        )
        return await self._enqueue(
            run, tenant, optim_step=training_pb2.OptimStepRequest(training_run_id=run, adam_params=params)
        )

    async def save_state(self, run: str, tenant: str, name: str, *, overwrite: bool = False) -> str:
        """Queues a save_state."""
        request = training_pb2.SaveStateRequest(training_run_id=run, name=name, overwrite=overwrite)
        return await self._enqueue(run, tenant, save_state=request)

    async def save_unnamed(self, run: str, tenant: str) -> str:
        """Queues a save of unnamed weights for a sampling session."""
        name = weights_name(self.next_seq_ids.get(run, 0))
        request = training_pb2.SaveWeightsForSamplerRequest(training_run_id=run, name=name, for_sampling_session=True)
        return await self._enqueue(run, tenant, save_weights_for_sampler=request)

    async def load_state(self, run: str, tenant: str, path: str) -> str:
        """Queues a load_state with the optimizer's state."""
        request = training_pb2.LoadStateRequest(training_run_id=run, path=path, restore_optimizer=True)
        return await self._enqueue(run, tenant, load_state=request)

    async def import_checkpoint(self, run: str, tenant: str, uploads: UploadStore, adapter: Path) -> str:
        """Uploads the two files of an adapter and queues their import."""
        session, _, number = run.split(":")
        ids = {}
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            content = (adapter / name).read_bytes()
            file = checkpoint_pb2.File(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            ids[name] = await uploads.receive(tenant, file, _blocks(content))
        request = checkpoint_pb2.ImportCheckpointRequest(
            session_id=session,
            training_run_seq_id=int(number),
            base_model=self.base_model,
            name="imported",
            config_upload_id=ids[CONFIG_FILE],
            weights_upload_id=ids[WEIGHTS_FILE],
        )
        return await self._enqueue(run, tenant, import_checkpoint=request)

    async def result(self, name: str, tenant: str) -> operation_pb2.Operation:
        """The operation once it is done."""
        found: operation_pb2.Operation | None = None

        async def is_done() -> bool:
            nonlocal found
            found = await self.operations.get(name, tenant)
            return found.done

        await until_true(is_done, what=f"the result of {name}")
        assert found is not None
        return found

    async def _enqueue(self, run: str, tenant: str, **request: Any) -> str:
        seq_id = self.next_seq_ids.get(run, 0)
        self.next_seq_ids[run] = seq_id + 1
        job = job_pb2.Job(operation=f"{run}:{seq_id}", tenant=tenant, **request)
        limits = LoadLimits.of(Settings())
        await self.logs.enqueue(job, digest=str(seq_id), method="Train", base_model=self.base_model, limits=limits)
        return job.operation


async def _blocks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), MAX_BLOCK_BYTES):
        yield content[start : start + MAX_BLOCK_BYTES]


def loss_of(operation: operation_pb2.Operation) -> float:
    """The loss that a forward_backward which succeeded reports."""
    assert not operation.HasField("error"), operation.error.message
    response = training_pb2.ForwardBackwardResponse()
    assert operation.response.Unpack(response)
    return response.metrics["loss:sum"]


def open_queue(connection: RedisConnection, base: BaseModel, data_dir: Path) -> Queue:
    """A queue of runs on `base`; large payloads go to blobs in `data_dir`."""
    payloads = Payloads(BlobStore(LocalStorage(data_dir)))
    return Queue(base.name, RunLogs(connection, payloads), OperationStore(connection, payloads))
