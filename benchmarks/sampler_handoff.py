"""What it takes from trained weights to the first token sampled from them, in parts and through the whole platform."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.table import Table

import tinker_client as tinker
from benchmarks.latency import BASE_MODEL, KEY, platform
from services.core.storage.files import sync_tree
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import read_adapter
from services.model.base import load_base_model
from services.model.manifest import Manifest
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.request import GenerationRequest, SamplingParams
from services.trainer.engine.checkpoint_files import write_checkpoint
from services.trainer.engine.local import LocalTrainerEngine
from tinker_client import types

PROMPT = types.ModelInput.from_ints(list(range(5, 21)))


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def handoff_table(model: Path, scratch: Path, rounds: int) -> Table:
    """Medians over `rounds`, in wall-clock time."""
    table = Table("save_weights_and_get_sampling_client, rank 8", "p50 in ms")
    for name, times in {**_parts(model, scratch, rounds), **_whole(model, scratch, rounds)}.items():
        table.add_row(name, f"{statistics.median(times):.1f}")
    return table


def _parts(model: Path, scratch: Path, rounds: int) -> dict[str, list[float]]:
    trainer = LocalTrainerEngine(load_base_model(str(model), name=BASE_MODEL, device="cpu"))
    config = AdapterConfig(8, seed=1)
    state = trainer.create_run("run", config)
    base = load_base_model(str(model), name=BASE_MODEL, device="cpu")
    sampler = NativeSamplerEngine(base, max_sequences=8, max_tokens_per_step=64, max_cached_tokens=1024, max_adapters=4)
    times: dict[str, list[float]] = {"export": [], "store (fsync)": [], "load": [], "load and first token": []}

    def first_token(directory: Path) -> None:
        params = SamplingParams(1, seed=1)
        sampler.submit(GenerationRequest(directory.name, tuple(range(5, 21)), 1, params, adapter=directory))
        while not sampler.idle:
            sampler.step()

    for index in range(rounds):
        directory = scratch / f"version-{index}"
        directory.mkdir()
        manifest = Manifest("sampler", "run", BASE_MODEL, config, f"run:{index}")
        times["export"].append(milliseconds(partial(write_checkpoint, directory, state, trainer.base, manifest)))
        times["store (fsync)"].append(milliseconds(partial(sync_tree, directory)))
        times["load"].append(milliseconds(partial(read_adapter, directory, base)))
        times["load and first token"].append(milliseconds(partial(first_token, directory)))
    return times


def _whole(model: Path, scratch: Path, rounds: int) -> dict[str, list[float]]:
    saved, sampled, again = [], [], []
    params = types.SamplingParams(max_tokens=1, seed=1)
    with (
        platform(model, scratch / "platform") as address,
        tinker.ServiceClient(base_url=f"grpc://{address}", api_key=KEY) as client,
    ):
        run = client.create_lora_training_client(BASE_MODEL, rank=8, seed=0)
        for index in range(rounds + 1):
            start = time.perf_counter()
            sampling = run.save_weights_and_get_sampling_client()
            middle = time.perf_counter()
            sampling.sample(PROMPT, 1, params).result(60)
            if index:  # the first one warms everything up
                saved.append((middle - start) * 1000)
                sampled.append((time.perf_counter() - middle) * 1000)
                again.append(milliseconds(sampling.sample(PROMPT, 1, params).result))
    return {
        "platform: save and get a sampling client": saved,
        "platform: first sample from it, 1 token": sampled,
        "platform: another one": again,
    }
