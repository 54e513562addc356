"""What one more run costs in memory, and what the row-wise products of the base model do."""

from __future__ import annotations

import ctypes
import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from trainer_load import ADAM, LOSS, engine_with, example, load
from trainer_table import Targets

from services.model.adapter_config import AdapterConfig
from services.model.lora import install_lora
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import PassJob
from testing.passes import run_alone

_RUNS = 32


def memory(targets: Targets, source: Path) -> None:
    """Resident bytes of runs over those of their vectors, and of the products over the weights'."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        spent, vectors, products = fresh.submit(measure, source).result()
    what = f"one more run over its adapter, gradient and moments ({vectors / 2**20:.1f} MiB)"
    targets.report("memory", what, 1.1, [spent / vectors], at_most=True)
    targets.note("memory", "row-wise products over the weights that they copy", [products])


def measure(source: Path) -> tuple[float, int, float]:
    """Bytes of a run that has trained, bytes of its four vectors, and the products' over the weights'."""
    torch.set_num_threads(1)
    base = load(source)
    weights = sum(linear.weight.numel() * 4 for linear in base.adaptable_linears().values())
    for weight in base.module.parameters():
        weight.sum()  # files are mapped, and their pages count when they are read
    before = resident_bytes()
    install_lora(base)
    products = (resident_bytes() - before) / weights
    engine = engine_with(source, 1)
    train(engine, "r0")
    before = resident_bytes()
    for index in range(_RUNS):
        engine.create_run(f"extra-{index}", AdapterConfig(8, seed=index))
        train(engine, f"extra-{index}")
    spent = (resident_bytes() - before) / _RUNS
    return spent, engine.run("r0").buffer.numel() * 4, products


def train(engine: LocalTrainerEngine, run: str) -> None:
    """One step, so that every vector of the run has been written."""
    run_alone(engine, PassJob(run, [example(16, 0)], LOSS, {}, backward=True))
    engine.optim_step(run, ADAM)


def resident_bytes() -> int:
    """Memory of this process without what the allocator could give back (Linux, glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
