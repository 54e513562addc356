"""What the sampler's benchmarks share: a small random model, and our engine with short ways to ask it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, Qwen3Config

from services.model.base import load_base_model
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.request import GenerationRequest, GenerationResult, SamplingParams
from testing.tiny_models import save_tiny_model

REQUESTS, PROMPT_TOKENS, NEW_TOKENS, ADAPTERS = 32, 64, 64, 8
TOKENS = REQUESTS * NEW_TOKENS

console = Console(width=110)
Row = tuple[str, str, str, str]
"""Target's number, what is measured, target, value."""


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def best(call: Callable[[], object], rounds: int) -> float:
    return min(cpu_seconds(call) for _ in range(rounds))


def save_model(directory: Path) -> Path:
    save_tiny_model(directory, "qwen3")  # for its tokenizer
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


class Sampler:
    """Our engine, and short ways to ask it."""

    def __init__(self, model: Path, *, deterministic: bool = False) -> None:
        self.base = load_base_model(str(model), name="bench", device="cpu")
        self.engine = NativeSamplerEngine(
            self.base,
            max_sequences=32,
            max_tokens_per_step=512,
            max_cached_tokens=16_384,
            max_adapters=16,
            deterministic=deterministic,
        )
        self._asked = 0

    def request(
        self, prompt: Sequence[int], adapter: Path | None = None, num_samples: int = 1, seed: int = 0, **options: object
    ) -> GenerationRequest:
        self._asked += 1
        params = SamplingParams(NEW_TOKENS, seed=seed)
        return GenerationRequest(f"r{self._asked}", tuple(prompt), num_samples, params, adapter=adapter, **options)  # type: ignore[arg-type]

    def run(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Nothing of it stays in the prefix cache."""
        for request in requests:
            self.engine.submit(request)
        outcomes = {}
        while not self.engine.idle:
            outcomes |= {finished.name: finished.outcome for finished in self.engine.step()}
        self.engine.forget_cached_prefixes()
        results = [outcomes[request.name] for request in requests]
        assert all(isinstance(result, GenerationResult) for result in results), results
        return results  # type: ignore[return-value]

    def serve(self, prompts: Sequence[Sequence[int]], adapters: Sequence[Path | None]) -> list[GenerationResult]:
        """One request a prompt, adapters in turn."""
        return self.run([self.request(prompt, adapters[i % len(adapters)], seed=i) for i, prompt in enumerate(prompts)])
