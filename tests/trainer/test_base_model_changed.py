"""Another base model under the same name: what was made with the first one is refused, and goes on with that one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from services.core.queue.connection import RedisConnection
from services.core.storage.checkpoint_store import MANIFEST_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import read_adapter
from services.model.base import BaseModel
from services.model.fingerprint import BaseModelChangedError, Fingerprint
from services.trainer.engine.local import LocalTrainerEngine
from testing.served_trainer import serving
from testing.training_queue import Queue, open_queue
from testing.watched_engine import WatchedEngine
from tests.model.fixtures import load, source

__all__ = ["load", "source"]

RUN = "s0:train:0"
FIRST = Fingerprint("1-1-1")
OTHER = Fingerprint("1-1-2")
ACCEPTING = Fingerprint("1-1-2", frozenset({"1-1-1"}))
LEASE = {"lease_seconds": 1.0}


@pytest.fixture
def base(load: Callable[..., BaseModel]) -> Callable[[Fingerprint], BaseModel]:
    return lambda fingerprint: dataclasses.replace(load(), fingerprint=fingerprint)


async def trained(queue: Queue) -> list[str]:
    """The reasons for which the operations of a step have failed."""
    names = [await queue.forward_backward(RUN, "t"), await queue.optim_step(RUN, "t")]
    results = [await queue.result(name, "t") for name in names]
    return [result.error.reason for result in results if result.HasField("error")]


@pytest.mark.parametrize("dies", [False, True], ids=["from a snapshot", "from the log"])
async def test_a_run_goes_on_with_its_own_base_model_alone(
    connection: RedisConnection, base: Callable[[Fingerprint], BaseModel], data_dir: Path, dies: bool
) -> None:
    queue = open_queue(connection, base(FIRST), data_dir)
    await queue.create(RUN, "t")

    async def served_by(fingerprint: Fingerprint) -> tuple[list[str], int | None]:
        ends = dies and fingerprint is FIRST
        engine = WatchedEngine(base(fingerprint), row_tokens=64)
        async with serving(connection, engine, queue, data_dir, name=fingerprint.value, dies=ends, **LEASE):
            failed = await trained(queue)
            return failed, None if failed else engine.run(RUN).step

    assert await served_by(FIRST) == ([], 1)
    assert await served_by(OTHER) == (["BASE_MODEL_CHANGED"] * 2, None)
    assert await served_by(FIRST) == ([], 2)
    assert await served_by(ACCEPTING) == ([], 3)


def test_a_checkpoint_is_opened_on_its_own_base_model_alone(
    base: Callable[[Fingerprint], BaseModel], tmp_path: Path
) -> None:
    first = LocalTrainerEngine(base(FIRST))
    first.create_run("r", AdapterConfig(2, seed=1))
    first.export_run("r").write_checkpoint(tmp_path, "r:1", "training")
    other = LocalTrainerEngine(base(OTHER))
    message = (
        "the training checkpoint of operation r:1 .* 1-1-1, .* 1-1-2 .other weights.; .*--accepted-fingerprints 1-1-1"
    )
    with pytest.raises(BaseModelChangedError, match=message):
        other.read_checkpoint(tmp_path)
    with pytest.raises(BaseModelChangedError, match=message):
        read_adapter(tmp_path, other.base)  # samplers and merges
    LocalTrainerEngine(base(ACCEPTING)).read_checkpoint(tmp_path)
    first.read_checkpoint(tmp_path)


def test_a_checkpoint_written_without_a_fingerprint_is_opened(
    base: Callable[[Fingerprint], BaseModel], tmp_path: Path
) -> None:
    engine = LocalTrainerEngine(base(FIRST))
    engine.create_run("r", AdapterConfig(2, seed=1))
    engine.export_run("r").write_checkpoint(tmp_path, "r:1", "training")
    manifest = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert manifest.pop("base_fingerprint") == FIRST.value
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest))
    LocalTrainerEngine(base(OTHER)).read_checkpoint(tmp_path)
