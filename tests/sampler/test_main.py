"""The sampler process announces whatever engine the factory opens, and withdraws when it is stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.core.abilities import announced
from services.core.base_model_names import ServedModel
from services.core.config import SamplerSettings
from services.core.process import worker_server
from services.core.process.workers import WorkerDirectory
from services.core.queue.connection import RedisConnection
from services.sampler import main
from testing.waiting import until_true
from tests.sampler.fixed_text_engine import FixedTextEngine
from tinker_proto.internal.v1 import job_pb2


async def test_another_engine_is_announced_with_its_abilities_and_withdrawn_at_the_end(
    connection: RedisConnection, redis_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FixedTextEngine(base_model="fixed", aliases=("also",), max_sequences=3)
    opened: list[ServedModel] = []

    def open_engine(settings: SamplerSettings, model: ServedModel) -> FixedTextEngine:
        opened.append(model)
        return engine

    monkeypatch.setattr(main, "open_engine", open_engine)
    monkeypatch.setattr(main, "configure_logging", lambda *_: None)
    stop = asyncio.Event()
    monkeypatch.setattr(worker_server, "until_stopped", stop.wait)
    directory = WorkerDirectory(connection)
    serving = asyncio.create_task(
        main.serve(SamplerSettings(redis_url=redis_url, data_dir=data_dir), ["fixed=/model", "also=/model"])
    )

    async def is_announced() -> bool:
        return bool(await directory.live()) or serving.done()

    await until_true(is_announced)
    (status,) = await directory.live()
    assert opened == [ServedModel("fixed", "/model", ("also",), ("fixed=/model", "also=/model"))]
    assert (status.base_model, status.kind, status.slots) == ("fixed", job_pb2.WORKER_KIND_SAMPLER, 3)
    assert (status.max_context_length, status.vocab_size) == (64, 100)
    assert status.HasField("abilities")
    assert announced(status) == engine.info.abilities
    assert list(status.aliases) == ["also"]
    stop.set()
    await serving
    assert await directory.live() == []
