"""T4: the chunked unembedding against all logits at once, in peak memory and in time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from trainer_load import load, qwen
from trainer_table import Targets, ratios

from services.model.adapter_config import AdapterConfig
from services.model.logprobs import HeadPart, logprobs_and_gradient
from services.model.lora import install_lora
from testing.rows import perturbed_adapter


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that a call takes beyond what was taken before (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")

    def status(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    before = status("VmRSS")
    call()
    return status("VmHWM") - before


class Head:
    """The unembedding of a model with 152k words, our way and all logits at once."""

    def __init__(self, source: Path, length: int) -> None:
        torch.set_num_threads(1)
        self._base = load(source)
        install_lora(self._base)
        self._adapter = perturbed_adapter(self._base, AdapterConfig(8, train_unembed=False, seed=0))
        self._gradient = self._adapter.zeros()
        self._hidden = torch.randn(length, 256) * 0.1
        self._targets = torch.randint(3, 1000, (length, 1))

    def chunked(self) -> None:
        part = HeadPart(self._targets, self._adapter, self._gradient, lambda _, logprobs: -torch.ones_like(logprobs))
        logprobs_and_gradient(self._base, self._hidden, [part])

    def naive(self) -> None:
        leaf = self._hidden.clone().requires_grad_()
        logits = leaf @ self._base.module.get_parameter("lm_head.weight").t()
        (-logits.log_softmax(-1).gather(1, self._targets).sum()).backward()


def head_memory(source: Path, length: int, way: str) -> int:
    """Peak of one call in a process that has done nothing else: an allocator may keep what it once had."""
    return peak_bytes(getattr(Head(source, length), way))


def head(targets: Targets, scratch: Path, lengths: Sequence[int], repeats: int) -> None:
    """T4: the chunked head against all logits at once."""
    source = qwen(scratch, hidden=256, layers=1, vocab=151_936)
    for length, wanted in ((1024, 7), (4096, 25)):
        if length not in lengths:
            continue
        spent = {}
        for way in ("naive", "chunked"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                spent[way] = fresh.submit(head_memory, source, length, way).result()
        ratio = spent["naive"] / spent["chunked"]
        targets.report("T4", f"head, {length} tokens: memory of all logits over ours", wanted, [ratio])
        ways = Head(source, length)
        times = [1 / ratio for ratio in ratios(ways.chunked, ways.naive, min(repeats, 3))]
        targets.report("T4", f"head, {length} tokens: our time over theirs", 1.0, times, at_most=True)
