"""Jobs that read files hold nobody up: not the device thread, not the event loop, not another tenant's operations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from services.core.catalog.runs import Catalog
from services.core.queue.connection import RedisConnection
from services.core.storage.local import LocalStorage
from services.core.storage.uploads import UploadStore
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import write_adapter
from services.model.base import BaseModel
from services.trainer.engine.export import LocalRunExport
from services.trainer.engine.local import LocalTrainerEngine
from testing.rows import perturbed_adapter
from testing.served_trainer import serving
from testing.training_queue import Queue, loss_of, open_queue
from testing.waiting import until
from tests.model.hostile_adapters import many_tensors
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import training_pb2

THEIRS, MORE, OURS = "s0:train:0", "s0:train:1", "s1:train:0"


class SlowFiles(LocalTrainerEngine):
    """An engine whose files are read when a test says so; it remembers who read them."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base)
        self.may_read = threading.Event()
        self.reading: list[threading.Thread] = []
        self.device: set[threading.Thread] = set()

    def check_import(self, config: Path, weights: Path, *, rename_base_model: bool) -> None:
        self._wait()
        super().check_import(config, weights, rename_base_model=rename_base_model)

    def read_import(self, *args: object, **options: object) -> LocalRunExport:
        self._wait()
        return super().read_import(*args, **options)  # type: ignore[arg-type]

    def read_checkpoint(self, directory: Path) -> LocalRunExport:
        self._wait()
        return super().read_checkpoint(directory)

    def optim_step(self, *args: object, **options: object) -> float:
        self.device.add(threading.current_thread())
        return super().optim_step(*args, **options)  # type: ignore[arg-type]

    def _wait(self) -> None:
        self.reading.append(threading.current_thread())
        assert self.may_read.wait(20)


@pytest.fixture
def slow(load: Callable[..., BaseModel]) -> SlowFiles:
    return SlowFiles(load())


@pytest.fixture
def queue(connection: RedisConnection, slow: SlowFiles, data_dir: Path) -> Queue:
    return open_queue(connection, slow.base, data_dir)


@pytest.fixture
def adapter(slow: SlowFiles, tmp_path: Path) -> Path:
    directory = tmp_path / "adapter"
    directory.mkdir()
    write_adapter(directory, perturbed_adapter(slow.base, AdapterConfig(4, seed=1)), slow.base)
    return directory


def uploads(data_dir: Path) -> UploadStore:
    return UploadStore(LocalStorage(data_dir), max_bytes=1 << 30)


async def test_another_tenants_steps_go_on_while_an_adapter_is_imported(
    connection: RedisConnection, slow: SlowFiles, queue: Queue, data_dir: Path, adapter: Path
) -> None:
    imports = [await queue.import_checkpoint(run, "t", uploads(data_dir), adapter) for run in (THEIRS, MORE)]
    await queue.create(OURS, "u")
    async with serving(connection, slow, queue, data_dir):
        await until(lambda: bool(slow.reading))
        for _ in range(3):
            await queue.forward_backward(OURS, "u")
            assert not (await queue.result(await queue.optim_step(OURS, "u"), "u")).HasField("error")
        assert len(slow.reading) == 1, "a tenant has one at a time"
        assert not (await queue.operations.get(imports[0], "t")).done
        assert threading.main_thread() not in slow.reading, "the event loop is there"
        assert not slow.device & set(slow.reading)
        slow.may_read.set()
        for name in imports:
            assert not (await queue.result(name, "t")).HasField("error")
        assert loss_of(await queue.result(await queue.forward_backward(THEIRS, "t"), "t"))
        assert len(slow.reading) == 4, "each is checked, then read"
        assert not slow.device & set(slow.reading)


async def test_a_header_that_no_adapter_needs_is_refused_before_its_content_is_read(
    connection: RedisConnection,
    slow: SlowFiles,
    queue: Queue,
    data_dir: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many_tensors(adapter, 100_000)
    read: list[str] = []
    monkeypatch.setattr(UploadStore, "verify", lambda self, path, upload_id, name: read.append(name))
    name = await queue.import_checkpoint(THEIRS, "t", uploads(data_dir), adapter)
    slow.may_read.set()
    async with serving(connection, slow, queue, data_dir):
        error = (await queue.result(name, "t")).error
    assert error.reason == "BAD_ADAPTER"
    assert "adapter_model.safetensors: its header must be at most" in error.message
    assert read == ["adapter_config.json"]


async def test_a_checkpoint_is_read_beside_the_operations_of_others(
    connection: RedisConnection, slow: SlowFiles, queue: Queue, data_dir: Path
) -> None:
    run = training_pb2.TrainingRun(training_run_id=THEIRS, base_model=queue.base_model)
    await Catalog(connection).add_run("t", run)
    await queue.create(THEIRS, "t")
    await queue.create(OURS, "u")
    async with serving(connection, slow, queue, data_dir):
        await queue.save_state(THEIRS, "t", "a")
        first = await queue.forward_backward(THEIRS, "t")
        await queue.optim_step(THEIRS, "t")
        loaded = await queue.load_state(THEIRS, "t", str(TinkerPath(THEIRS, "weights", "a")))
        again = await queue.forward_backward(THEIRS, "t")
        await until(lambda: bool(slow.reading))
        await queue.forward_backward(OURS, "u")
        assert not (await queue.result(await queue.optim_step(OURS, "u"), "u")).HasField("error")
        assert not (await queue.operations.get(again, "t")).done, "a run's own operations keep their order"
        assert not slow.device & set(slow.reading)
        slow.may_read.set()
        assert not (await queue.result(loaded, "t")).HasField("error")
        assert loss_of(await queue.result(again, "t")) == loss_of(await queue.result(first, "t"))
