"""What a tenant that trains and a tenant that samples cost each other on one machine.

A whole platform on loopback with a small random model, one thread a worker. One loop trains and one samples, each
alone and then both together, in turns; wall clock. Two workers on two free cores should not feel each other; on a busy
machine each keeps its share. Usage: python benchmarks/sharing.py [--seconds N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

import tinker_client as tinker
from benchmarks.latency import ADAM, BASE_MODEL, KEY, platform
from benchmarks.sampler_parts import console, save_model
from tinker_client import types

TOKENS = [5 + i % 500 for i in range(256)]
DATA = [types.Datum(types.ModelInput.from_ints(TOKENS), {"target_tokens": [*TOKENS[1:], 4]})] * 4
PROMPT = types.ModelInput.from_ints(TOKENS[:64])
ROUNDS = 3


def train(run: tinker.TrainingClient) -> None:
    run.forward_backward(DATA, "cross_entropy").result(120)
    run.optim_step(ADAM).result(120)


def sample(sampling: tinker.SamplingClient) -> None:
    sampling.sample(PROMPT, 8, types.SamplingParams(max_tokens=32, seed=1, stop=[])).result(120)


def per_second(*loops: Callable[[], None], seconds: float) -> list[float]:
    """Rounds a second of each loop, all at the same time."""
    rates = [0.0] * len(loops)

    def measure(index: int) -> None:
        start, rounds = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            loops[index]()
            rounds += 1
        rates[index] = rounds / (time.perf_counter() - start)

    threads = [threading.Thread(target=measure, args=(index,)) for index in range(len(loops))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    seconds = parser.parse_args().seconds
    table = Table("rounds a second", "alone", "together", "kept")
    with tempfile.TemporaryDirectory() as scratch:
        model = save_model(Path(scratch) / "model")
        with (
            platform(model, Path(scratch) / "data") as address,
            tinker.ServiceClient(base_url=f"grpc://{address}", api_key=KEY) as client,
        ):
            run = client.create_lora_training_client(BASE_MODEL, rank=8, seed=0)
            sampling = run.save_weights_and_get_sampling_client()
            loops = {"training": lambda: train(run), "sampling": lambda: sample(sampling)}
            for loop in loops.values():
                loop()
            load = os.getloadavg()[0]
            alone: dict[str, list[float]] = {name: [] for name in loops}
            together: dict[str, list[float]] = {name: [] for name in loops}
            for _ in range(ROUNDS):
                for name, loop in loops.items():
                    alone[name] += per_second(loop, seconds=seconds)
                for name, rate in zip(loops, per_second(*loops.values(), seconds=seconds), strict=True):
                    together[name].append(rate)
    for name in loops:
        before, after = (sorted(rates[name])[ROUNDS // 2] for rates in (alone, together))
        table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{after / before:.0%}")
    console.print(table)
    console.print(f"{os.cpu_count()} cores, load {load:.1f} when the measurement began")


if __name__ == "__main__":
    main()
