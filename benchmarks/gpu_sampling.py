"""Generation on a GPU: steps of one and of many sequences, with and without adapters, against generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_model import Report, seconds, weights_of
from benchmarks.sampler_parts import NEW_TOKENS
from benchmarks.sampler_speed import generate
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import write_adapter
from services.model.base import BaseModel
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.request import GenerationRequest, GenerationResult, SamplingParams
from testing.rows import perturbed_adapter, random_tokens

PROMPT_TOKENS, ADAPTERS = 128, 8
CASES = ((1, 0), (1, 1), (32, 0), (32, 1), (32, ADAPTERS), (128, 0), (128, ADAPTERS))
"""Sequences at once, and how many adapters they have."""


def sampling(report: Report, base: BaseModel, scratch: Path) -> None:
    """`generate` first, before the engine takes the base model over."""
    step_bytes = 2 * weights_of(base)
    best = NEW_TOKENS * step_bytes / report.ceilings.bytes_per_second
    prompts = random_tokens(base, [PROMPT_TOKENS] * 128)
    for sequences in (1, 32):
        taken = seconds(lambda sequences=sequences: generate(base.module, prompts[:sequences]), 1)
        what = f"generate, {sequences} sequences as one static batch"
        report.add(what, sequences * NEW_TOKENS, taken, best)
    adapters = [written(base, scratch, seed) for seed in range(ADAPTERS)]
    engine = NativeSamplerEngine(
        base, max_sequences=128, max_tokens_per_step=8192, max_cached_tokens=65_536, max_adapters=ADAPTERS
    )
    for sequences, count in CASES:
        locations = adapters[:count] or [None]
        taken = seconds(lambda s=sequences, found=locations: serve(engine, prompts[:s], found), 1)
        what = f"sampler, {sequences} sequences, {count} adapters"
        report.add(what, sequences * NEW_TOKENS, taken, best)


def written(base: BaseModel, scratch: Path, seed: int) -> Path:
    directory = scratch / f"adapter-{seed}"
    directory.mkdir()
    write_adapter(directory, perturbed_adapter(base, AdapterConfig(8, seed=seed)), base)
    return directory


def serve(engine: NativeSamplerEngine, prompts: Sequence[Sequence[int]], locations: Sequence[Path | None]) -> None:
    """Prefill and all steps of one request a prompt, adapters in turn."""
    for index, prompt in enumerate(prompts):
        params = SamplingParams(NEW_TOKENS, seed=index)
        engine.submit(
            GenerationRequest(f"r{index}", tuple(prompt), 1, params, adapter=locations[index % len(locations)])
        )
    while not engine.idle:
        for finished in engine.step():
            assert isinstance(finished.outcome, GenerationResult), finished.outcome
    engine.forget_cached_prefixes()
