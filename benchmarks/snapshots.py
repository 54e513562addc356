"""What snapshots cost while runs train, and how long a run takes to come back; prints tables.

A worker, its queue on a real Valkey, and an engine in one process with one torch thread. CPU time where that is what
counts; the arms of a comparison take turns. Usage: python benchmarks/snapshots.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config

from services.core.config import Settings
from services.core.process.device_thread import DeviceThread
from services.core.process.telemetry import configure_logging
from services.core.queue.connection import RedisConnection
from services.core.queue.payloads import Payloads
from services.core.queue.recovery_state import RecoveryStates
from services.core.storage.blobs import BlobStore
from services.core.storage.local import LocalStorage
from services.core.storage.snapshot_store import SnapshotStore
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel, load_base_model
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.optimizer import adamw_step
from services.trainer.snapshot_policy import Progress
from services.trainer.snapshots import Snapshots
from testing.served_trainer import serving
from testing.tiny_models import save_model
from testing.training_data import ADAM
from testing.training_queue import Queue, open_queue
from testing.valkey import valkey

RUNS = 4
LENGTHS = (64, 64)
LEASE_S = 1.0
NEVER = {"snapshot_steps": 10**6, "snapshot_seconds": 1e6, "snapshot_log_entries": 10**6}

console = Console()


def small_model(directory: Path) -> BaseModel:
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return load_base_model(str(save_model(directory, config)), name="bench", device="cpu")


@asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[RedisConnection]:
    async with valkey(directory) as url:
        connection = RedisConnection.open(url)
        yield connection
        await connection.close()


async def train(queue: Queue, runs: list[str], steps: int) -> None:
    """All runs' steps, queued at once."""
    for run in runs:
        for _ in range(steps):
            await queue.forward_backward(run, "t", LENGTHS)
            await queue.optim_step(run, "t")
    await asyncio.gather(*(queue.result(f"{run}:{queue.next_seq_ids[run] - 1}", "t") for run in runs))


async def cost(connection: RedisConnection, base: BaseModel, rounds: int, steps: int) -> None:
    """CPU time of training with the default policy over that without snapshots."""
    engine, ratios = LocalTrainerEngine(base), []
    with tempfile.TemporaryDirectory() as directory:
        for turn in range(rounds):
            seconds = {}
            for arm, settings in (("never", NEVER), ("default", {})):
                queue = open_queue(connection, base, Path(directory))
                runs = [f"{arm}{turn}x{index}:train:0" for index in range(RUNS)]
                async with serving(connection, engine, queue, Path(directory), name=arm, dies=True, **settings):
                    for run in runs:
                        await queue.create(run, "t", rank=32)
                    await train(queue, runs, 2)
                    started = time.process_time()
                    await train(queue, runs, steps)
                    seconds[arm] = time.process_time() - started
                for run in runs:
                    engine.drop_run(run)
                taken = len(list((Path(directory) / "snapshots").glob(f"{arm}{turn}*/*")))
                await connection.commands.flushall()  # or the next trainer would take these runs over
            ratios.append(seconds["default"] / seconds["never"] - 1)
            console.print(f"round {turn}: never {seconds['never']:.2f} s, default {seconds['default']:.2f} s of CPU")
    table = Table("what", "wanted", "measured", "spread", title="Cost of snapshots, default policy")
    spread = f"{min(ratios):.1%} to {max(ratios):.1%}"
    table.add_row(f"{RUNS} runs, {steps} steps each: CPU added", "≤ 3 %", f"{statistics.median(ratios):.1%}", spread)
    table.add_row("snapshots on the disk afterwards", "-", str(taken), "")
    console.print(table)


async def one_snapshot(connection: RedisConnection, base: BaseModel, ranks: tuple[int, ...]) -> None:
    """Parts of one snapshot, and of coming back from it, by the adapter's size."""
    table = Table("rank", "MB", "held up ms", "CPU ms", "write ms", "restore ms", title="One snapshot")
    device = DeviceThread()
    for rank in ranks:
        engine = LocalTrainerEngine(base)
        with tempfile.TemporaryDirectory() as directory:
            storage = LocalStorage(Path(directory))
            recovery_states = RecoveryStates(connection, Payloads(BlobStore(storage)))
            snapshots = Snapshots(engine, device, SnapshotStore(storage), recovery_states)
            queue, run = open_queue(connection, base, Path(directory)), f"r{rank}:train:0"
            await queue.create(run, "t", rank=rank)
            lease = await queue.logs.claim("w", run, "0-1", 10**6)
            assert lease is not None
            held = await snapshots.restore(lease)
            state = engine.create_run(run, AdapterConfig(rank, seed=1))
            state.buffer.normal_()
            state.gradient.zero_()
            copies, cpus, writes, restores = [], [], [], []
            for seq_id in range(5):
                held.progress = Progress(seq_id, seq_id + 1)
                begin, cpu = time.perf_counter(), time.process_time()
                copy = await snapshots.copy(held)
                assert copy is not None
                copies.append(time.perf_counter() - begin)
                begin = time.perf_counter()
                await snapshots.save(held, copy)
                writes.append(time.perf_counter() - begin)
                cpus.append(time.process_time() - cpu)
                begin = time.perf_counter()
                await snapshots.restore(lease)
                restores.append(time.perf_counter() - begin)
            size = written_mb(Path(directory)) / 2
        ms = [f"{1000 * statistics.median(times):.1f}" for times in (copies, cpus, writes, restores)]
        table.add_row(str(rank), f"{size:.1f}", *ms)
    device.close()
    console.print(table)


def written_mb(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*.safetensors")) / 1e6


async def recovery(connection: RedisConnection, base: BaseModel, lengths: tuple[int, ...]) -> None:
    """From the end of a dead trainer's lease to its run's next result, by the steps that are replayed."""
    table = Table("steps behind the snapshot", "s", "over doing them", title="Recovery by replay")
    for steps in lengths:
        run = f"l{steps}:train:0"
        with tempfile.TemporaryDirectory() as directory:
            queue = open_queue(connection, base, Path(directory))
            common: dict[str, Any] = {"lease_seconds": LEASE_S, **NEVER}
            async with serving(connection, LocalTrainerEngine(base), queue, Path(directory), **common):
                await queue.create(run, "t", rank=32)
                await train(queue, [run], 2)
            async with serving(connection, LocalTrainerEngine(base), queue, Path(directory), dies=True, **common):
                await train(queue, [run], 1)
                begin = time.perf_counter()
                await train(queue, [run], steps)
                doing = time.perf_counter() - begin
            name = await queue.optim_step(run, "t")
            await asyncio.sleep(2 * LEASE_S)
            begin = time.perf_counter()
            async with serving(connection, LocalTrainerEngine(base), queue, Path(directory), dies=True, **common):
                await queue.result(name, "t")
                seconds = time.perf_counter() - begin
        table.add_row(str(steps), f"{seconds:.2f}", f"{seconds / doing:.2f}" if steps else "-")
        await connection.commands.flushall()
    console.print(table)


def incremental(base: BaseModel) -> None:
    """What the difference between two steps of a run takes, if it were stored in place of the whole."""
    engine = LocalTrainerEngine(base)
    state = engine.create_run("r", AdapterConfig(32, seed=1))
    for _ in range(5):
        state.gradient.normal_(0, 1e-3)
        adamw_step(state, ADAM)
    before = state.copied_to("cpu")
    state.gradient.normal_(0, 1e-3)
    adamw_step(state, ADAM)
    parts = [(state.weights.flat, before.weights.flat), (state.exp_avg, before.exp_avg)]
    parts.append((state.exp_avg_sq, before.exp_avg_sq))
    changed = statistics.mean(float((now != old).float().mean()) for now, old in parts)
    difference = b"".join((now.view(torch.int32) ^ old.view(torch.int32)).numpy().tobytes() for now, old in parts)
    begin = time.thread_time()
    packed = zlib.compress(difference, 1)
    seconds = time.thread_time() - begin
    console.print(
        f"One step changes {changed:.1%} of weights and moments; their difference packs to "
        f"{len(packed) / len(difference):.0%} at {len(difference) / 1e6 / seconds:.0f} MB/s"
    )


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = arguments.parse_args().quick
    torch.set_num_threads(1)
    configure_logging(Settings(log_level="error"), "benchmark")
    with tempfile.TemporaryDirectory() as directory:
        base = small_model(Path(directory) / "model")
        incremental(base)
        async with connected(Path(directory)) as connection:
            await one_snapshot(connection, base, (8, 32, 128) if quick else (8, 32, 128, 512))
            await recovery(connection, base, (0, 10) if quick else (0, 10, 20, 40))
            await cost(connection, base, 1 if quick else 3, 40)


if __name__ == "__main__":
    asyncio.run(main())
