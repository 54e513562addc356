"""What the GPU benchmarks share: a model of a real size, the device's measured ceilings, and the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3Config

from services.model.base import BaseModel, load_base_model
from testing.tiny_models import save_tiny_model

CUDA = torch.device("cuda")
VOCAB = 151_936


def big_base(scratch: Path) -> BaseModel:
    """Qwen3-1.7B's sizes with random weights, made on the device; the tokenizer is a tiny one, and nobody uses it."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    tiny = load_base_model(str(save_tiny_model(scratch / "tiny", "qwen3")), name="bench", device="cuda")
    torch.manual_seed(0)
    with CUDA:
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    module.train(False).requires_grad_(False)
    return replace(tiny, module=module, config=module.config, vocab_size=VOCAB, max_context_length=40_960)


def weights_of(base: BaseModel) -> int:
    """Weights that a token is multiplied with."""
    return sum(weight.numel() for weight in base.module.parameters())


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Median wall clock of a call that warmed up once, all work of the device included."""
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best."""

    bytes_per_second: float
    """Of memory, reads and writes together."""

    flops: float
    """Of bfloat16 matrix products."""

    @classmethod
    def measured(cls) -> Ceilings:
        source = torch.randn(1 << 30, device=CUDA, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        copied = seconds(lambda: target.copy_(source), 9)
        left, right = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
        multiplied = seconds(lambda: left @ right, 9)
        return cls(2 * source.nbytes / copied, 2 * 8192**3 / multiplied)


class Report:
    """The table."""

    def __init__(self, ceilings: Ceilings) -> None:
        self.ceilings = ceilings
        self._console = Console(width=120)
        self._table = Table("what", "tokens/s", "ms", "of the ceiling")
        self._console.print(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies {ceilings.bytes_per_second / 1e12:.2f} "
            f"TB/s, bfloat16 products {ceilings.flops / 1e12:.0f} TFLOP/s"
        )

    def add(self, what: str, tokens: int, seconds: float, best: float) -> None:
        """A row: so many tokens in so many seconds, which could not take less than `best` seconds."""
        row = (what, f"{tokens / seconds:,.0f}", f"{seconds * 1000:,.1f}", f"{best / seconds * 100:.0f} %")
        self._table.add_row(*row)
        self._console.print("  ".join(row))

    def print(self) -> None:
        """The whole table."""
        self._console.print(self._table)
