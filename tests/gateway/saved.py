"""Checkpoints as a trainer would save them: files in the store, and an entry made with a finished operation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.core.catalog.checkpoints import StoredCheckpoint, checkpoint_writes
from services.core.names import OperationName
from services.core.queue.run_log import Lease
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, training_pb2


async def lease_of(stores: Stores, run: str) -> Lease:
    lease = await stores.run_logs.claim("w", run, "0-1", 60_000)
    assert lease is not None
    return lease


async def save(
    caller: Caller,
    stores: Stores,
    run: str,
    name: str,
    *,
    tenant: str = "alice",
    kind: str = "weights",
    when: datetime | None = None,
    **fields: object,
) -> str:
    """Queues a save, writes a file, and finishes it; returns the path."""
    if kind == "weights":
        request = training_pb2.SaveStateRequest(training_run_id=run, name=name, overwrite=True, **fields)  # type: ignore[arg-type]
        operation = await caller.training.SaveState(request)
    else:
        sampler = training_pb2.SaveWeightsForSamplerRequest(training_run_id=run, name=name, **fields)  # type: ignore[arg-type]
        operation = await caller.training.SaveWeightsForSampler(sampler)
    seq_id = OperationName.parse(operation.name).seq_id
    return await enter(stores, run, name, seq_id, tenant=tenant, kind=kind, when=when, **fields)


async def enter(
    stores: Stores,
    run: str,
    name: str,
    seq_id: int,
    *,
    tenant: str = "alice",
    kind: str = "weights",
    when: datetime | None = None,
    files: bool = True,
    **fields: object,
) -> str:
    path = TinkerPath(run, kind, name)  # type: ignore[arg-type]
    location = f"{run}/{kind}/{name}/{seq_id}"
    if files:
        with stores.checkpoints.write(location) as directory:
            (directory / "adapter_config.json").write_text(str(seq_id))
    checkpoint = checkpoint_pb2.Checkpoint(
        checkpoint_id=path.checkpoint_id,
        checkpoint_type=1 if kind == "weights" else 2,
        tinker_path=str(path),
        training_run_id=run,
        base_model=BASE,
        lora_config=training_pb2.LoraConfig(rank=4),
        user_metadata=fields.get("user_metadata") or {},  # type: ignore[arg-type]
    )
    written = when or datetime.now(UTC)
    checkpoint.time.FromDatetime(written)
    if (seconds := fields.get("ttl_seconds")) is not None:
        assert isinstance(seconds, int | float)
        checkpoint.expires_at.FromDatetime(written + timedelta(seconds=seconds))
    replaced = await stores.catalog.checkpoints.location_of(path)
    writes = checkpoint_writes(tenant, StoredCheckpoint(checkpoint, location), replaced)
    result = await stores.operations.result(training_pb2.SaveStateResponse(path=str(path)))
    lease = await lease_of(stores, run)
    done = await stores.run_logs.next_seq_id(run)
    for earlier in range(done):
        if earlier != seq_id:
            await stores.run_logs.skip(lease, earlier)
    await stores.run_logs.complete(lease, seq_id, result, writes)
    return str(path)
