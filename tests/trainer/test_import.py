"""Imports in the trainer: twice is once, a replay is the same, and a refused adapter leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from google.protobuf.message import Message
from safetensors.torch import load_file, save_file

from services.core.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.local import LocalStorage
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import write_adapter
from services.model.base import BaseModel
from services.trainer.engine.interface import TrainerEngine
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.execute import execute, prepared
from services.trainer.executors import Execution, Locations
from testing.rows import perturbed_adapter
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import checkpoint_pb2

RUN, TARGET = "s:train:0", "s:train:0/weights/theirs/0"


def carry_out(engine: TrainerEngine, checkpoints: CheckpointStore, job: job_pb2.Job, locations: Locations) -> Message:
    """The response of a job."""
    return execute(prepared(Execution(engine, checkpoints, job, locations))).response


@pytest.fixture
def uploads(engine: LocalTrainerEngine, tmp_path: Path) -> tuple[Path, Path]:
    directory = tmp_path / "uploads"
    directory.mkdir()
    write_adapter(directory, perturbed_adapter(engine.base, AdapterConfig(6, seed=1)), engine.base)
    return directory / CONFIG_FILE, directory / WEIGHTS_FILE


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(LocalStorage(tmp_path))


def job(operation: str = f"{RUN}:0") -> job_pb2.Job:
    request = checkpoint_pb2.ImportCheckpointRequest(session_id="s", name="theirs", base_model="tiny-qwen3")
    return job_pb2.Job(operation=operation, import_checkpoint=request)


def flat(engine: LocalTrainerEngine) -> torch.Tensor:
    return engine.run(RUN).weights.flat


def test_a_second_attempt_takes_what_the_first_has_written(
    load: Callable[..., BaseModel], engine: LocalTrainerEngine, checkpoints: CheckpointStore, uploads: tuple[Path, Path]
) -> None:
    first = carry_out(engine, checkpoints, job(), Locations(target=TARGET, uploads=uploads))
    second, replayed = LocalTrainerEngine(load()), LocalTrainerEngine(load())
    again = carry_out(second, checkpoints, job(), Locations(target=TARGET))
    assert isinstance(again, checkpoint_pb2.ImportCheckpointResponse)
    assert again == first
    assert again.path == f"tinker://{RUN}/weights/theirs"
    carry_out(replayed, checkpoints, job(), Locations(source=TARGET))
    assert torch.equal(flat(second), flat(engine))
    assert torch.equal(flat(replayed), flat(engine))
    assert not any(vector.any() for vector in engine.run(RUN).optimizer_vectors().values())
    assert engine.run(RUN).step == 0


def test_what_another_operation_has_written_is_not_taken(
    engine: LocalTrainerEngine, checkpoints: CheckpointStore, uploads: tuple[Path, Path]
) -> None:
    carry_out(engine, checkpoints, job("s:train:1:0"), Locations(target="s:train:1/weights/theirs/0", uploads=uploads))
    engine.drop_run(RUN)
    with pytest.raises(AlreadyExistsError):
        carry_out(engine, checkpoints, job(), Locations(target="s:train:1/weights/theirs/0", uploads=uploads))
    with pytest.raises(NotFoundError):
        engine.run(RUN)


def test_a_refused_adapter_leaves_neither_run_nor_files(
    engine: LocalTrainerEngine, checkpoints: CheckpointStore, uploads: tuple[Path, Path]
) -> None:
    tensors = load_file(uploads[1])
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, uploads[1])
    with pytest.raises(InvalidArgumentError, match=f"{name} must be finite .*NaN"):
        carry_out(engine, checkpoints, job(), Locations(target=TARGET, uploads=uploads))
    assert not checkpoints.exists(TARGET)
    with pytest.raises(NotFoundError):
        engine.run(RUN)
