"""A trainer's worker served in this process, over a real queue and a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.core.config import Settings
from services.core.process.device_thread import DeviceThread
from services.core.queue.connection import RedisConnection
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.main import assemble
from services.trainer.worker import TrainerWorker
from testing.training_queue import Queue


@asynccontextmanager
async def serving(
    connection: RedisConnection,
    engine: LocalTrainerEngine,
    queue: Queue,
    data_dir: Path,
    *,
    name: str = "worker",
    dies: bool = False,
    hesitate: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **settings: Any,
) -> AsyncIterator[TrainerWorker]:
    """Serves until the block ends, then stops as a trainer stops; one that `dies` just ends, with its leases."""
    device = DeviceThread()
    worker = assemble(Settings(data_dir=data_dir, **settings), name, engine, device, connection, hesitate=hesitate)
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
