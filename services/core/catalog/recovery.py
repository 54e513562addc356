"""Recovery of the catalog from the storage, after the data of Redis was lost.

Of each name the newest checkpoint comes back, with the run that wrote it, to the tenant that its record names. What
only Redis had does not: API keys, sessions, the logs of runs, publications, times to live.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.core.catalog.checkpoints import CheckpointCatalog, StoredCheckpoint, checkpoint_writes
from services.core.catalog.identity import Identity
from services.core.catalog.runs import run_writes
from services.core.errors import DataLossError, NotFoundError
from services.core.queue.connection import RedisConnection, Write
from services.core.storage.checkpoint_store import MANIFEST_FILE, CheckpointStore
from services.core.storage.interface import Storage, Stored
from services.core.storage.records import CheckpointRecord
from tinker_proto.path import CheckpointKind, TinkerPath
from tinker_proto.v1 import checkpoint_pb2, training_pb2

_TYPES = {
    CheckpointKind.WEIGHTS: checkpoint_pb2.CHECKPOINT_TYPE_TRAINING,
    CheckpointKind.SAMPLER_WEIGHTS: checkpoint_pb2.CHECKPOINT_TYPE_SAMPLER,
    CheckpointKind.EXTERNAL_WEIGHTS: checkpoint_pb2.CHECKPOINT_TYPE_EXTERNAL,
}
_MOST_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Found:
    """A checkpoint of the storage."""

    path: TinkerPath
    location: str
    size_bytes: int

    record: CheckpointRecord | None
    """None if its owner is not known, or it cannot be read; see `problem`."""

    is_known: bool = False
    """Whether the catalog has its path already."""

    problem: str = ""
    """Why it cannot come back; "" if it can."""


class CatalogRecovery:
    """The recovery of one Redis server from one storage."""

    def __init__(self, connection: RedisConnection, storage: Storage) -> None:
        self._connection = connection
        self._identity = Identity(connection, storage)
        self._catalog = CheckpointCatalog(connection)
        self._store = CheckpointStore(storage)
        self._records = self._store.records

    async def find(self, tenant: str = "") -> list[Found]:
        """The newest checkpoint of each name.

        Args:
            tenant: who owns checkpoints that were written without a record; "": they do not come back.

        Raises:
            FailedPreconditionError: the storage belongs to another Redis.
        """
        await self._identity.check_recoverable()
        found = await asyncio.to_thread(self._read, tenant)
        known = [bool(await self._catalog.location_of(item.path)) for item in found]
        return [
            Found(item.path, item.location, item.size_bytes, item.record, is_known, item.problem)
            for item, is_known in zip(found, known, strict=True)
        ]

    async def restore(self, found: Sequence[Found]) -> None:
        """Enters what can come back and is not known into the catalog, all of it or nothing, with the storage's id."""
        writes: list[Write] = [*await self._identity.adoption()]
        for item in found:
            if item.record is not None and not item.is_known:
                checkpoint = checkpoint_pb2.Checkpoint()
                checkpoint.CopyFrom(item.record.checkpoint)
                checkpoint.ClearField("expires_at")
                writes += run_writes(item.record.tenant, item.record.run)
                writes += checkpoint_writes(item.record.tenant, StoredCheckpoint(checkpoint, item.location), "")
        pipeline = self._connection.commands.pipeline(transaction=True)
        for write in writes:
            pipeline.execute_command(*write)
        await pipeline.execute()

    def _read(self, tenant: str) -> list[Found]:
        newest: dict[str, tuple[int, TinkerPath, Stored]] = {}
        for location, stored in self._store.all():
            parsed = _path_of(location)
            if parsed is None:
                continue
            path, seq_id = parsed
            if str(path) not in newest or newest[str(path)][0] < seq_id:
                newest[str(path)] = seq_id, path, replace(stored, key=location)
        return [self._found(path, stored, tenant) for _, path, stored in newest.values()]

    def _found(self, path: TinkerPath, stored: Stored, tenant: str) -> Found:
        location, record, problem = stored.key, None, ""
        try:
            record = self._records.get(location)
            if record is None and tenant:
                record = self._from_manifest(path, stored, tenant)
            elif record is None:
                problem = "its owner is not recorded: pass --tenant"
        except DataLossError as error:
            problem = error.message
        return Found(path, location, stored.size_bytes, record, problem=problem)

    def _from_manifest(self, path: TinkerPath, stored: Stored, tenant: str) -> CheckpointRecord:
        """The record of a checkpoint that was written without one, from what its files say."""
        try:
            manifest = json.loads(self._store.read(stored.key, MANIFEST_FILE, 0, _MOST_MANIFEST_BYTES))
            config, base_model = _lora_config(manifest["adapter"]), str(manifest["base_model"])
        except (ValueError, TypeError, KeyError, AttributeError, NotFoundError) as error:
            message = f"{MANIFEST_FILE} of checkpoint {stored.key} is missing or damaged: {error}"
            raise DataLossError(message, reason="CHECKPOINT_DAMAGED") from error
        checkpoint = checkpoint_pb2.Checkpoint(
            checkpoint_id=path.checkpoint_id,
            checkpoint_type=_TYPES[path.kind or CheckpointKind.WEIGHTS],
            tinker_path=str(path),
            size_bytes=stored.size_bytes,
            training_run_id=path.training_run_id,
            base_model=base_model,
            lora_config=config,
        )
        run = training_pb2.TrainingRun(training_run_id=path.training_run_id, base_model=base_model, lora_config=config)
        for time in (checkpoint.time, run.create_time, run.last_request_time):
            time.FromDatetime(stored.modified)
        return CheckpointRecord(tenant, checkpoint, run)


def _path_of(location: str) -> tuple[TinkerPath, int] | None:
    """The path and the seq_id of a location; None if it is none of a checkpoint with a path."""
    head, _, seq_id = location.rpartition("/")
    try:
        return TinkerPath.parse(f"tinker://{head}"), int(seq_id)
    except ValueError:
        return None


def _lora_config(adapter: dict[str, object]) -> training_pb2.LoraConfig:
    """An adapter's shape, from a manifest: its fields are named as those of the message are."""
    config, fields = training_pb2.LoraConfig(), training_pb2.LoraConfig.DESCRIPTOR.fields_by_name
    for name, value in adapter.items():
        if name not in fields or value is None or (adapter["target_modules"] and name.startswith("train_")):
            continue
        if isinstance(value, list):
            getattr(config, name).extend(value)
        elif isinstance(value, dict):
            getattr(config, name).update(value)
        elif name == "alpha" and isinstance(value, float) and not value.is_integer():
            config.own_alpha = value
        else:
            setattr(config, name, int(value) if name == "alpha" else value)  # type: ignore[call-overload]
    return config
