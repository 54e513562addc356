"""Records of checkpoints: what the catalog says of one, kept beside its files for the day that Redis is lost.

A record is written when the checkpoint enters the catalog and never changed: what happens to the entry later, such as
its publication, is not in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from services.core.errors import DataLossError
from services.core.storage.interface import Storage
from tinker_proto.v1 import checkpoint_pb2, training_pb2

ROOT = "records"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointRecord:
    """What the catalog says of a checkpoint."""

    tenant: str
    checkpoint: checkpoint_pb2.Checkpoint
    run: training_pb2.TrainingRun
    """The run that wrote it."""


class CheckpointRecords:
    """The records of one storage, by the location of the checkpoint."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def put(self, location: str, record: CheckpointRecord) -> None:
        """Writes a record."""
        content = {
            "format": FORMAT_VERSION,
            "tenant": record.tenant,
            "checkpoint": MessageToDict(record.checkpoint),
            "run": MessageToDict(record.run),
        }
        self._storage.put(_key(location), json.dumps(content).encode())

    def get(self, location: str) -> CheckpointRecord | None:
        """A record; None if there is none.

        Raises:
            DataLossError: it is damaged, or of another format.
        """
        try:
            content = json.loads(self._storage.get(_key(location)))
            if content["format"] != FORMAT_VERSION:
                raise ValueError(f"its format is {content['format']}")
            return CheckpointRecord(
                str(content["tenant"]),
                ParseDict(content["checkpoint"], checkpoint_pb2.Checkpoint()),
                ParseDict(content["run"], training_pb2.TrainingRun()),
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, ParseError) as error:
            message = f"the record of checkpoint {location} is damaged: {error}"
            raise DataLossError(message, reason="CHECKPOINT_DAMAGED") from error

    def delete(self, location: str) -> None:
        """Removes a record; nothing happens if there is none."""
        self._storage.delete_file(_key(location))


def _key(location: str) -> str:
    return f"{ROOT}/{location}.json"
