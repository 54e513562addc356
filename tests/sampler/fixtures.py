"""What sampler tests share: an engine of test size, adapters on disk, short ways to ask and to run to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from services.core.errors import PlatformError
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import write_adapter
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.request import GenerationRequest, GenerationResult, SamplingParams
from testing.rows import perturbed_adapter


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., tuple[Path, AdapterWeights]]:
    """Writes a trained-looking adapter; returns where, and its weights."""

    def written(base: BaseModel, seed: int, **config: Any) -> tuple[Path, AdapterWeights]:
        weights = perturbed_adapter(base, AdapterConfig(**{"rank": 4, "seed": seed, **config}))
        directory = tmp_path / f"adapter-{seed}"
        directory.mkdir()
        write_adapter(directory, weights, base)
        return directory, weights

    return written


def make_engine(
    base: BaseModel, *, deterministic: bool = False, share_prefixes: bool = False, **limits: int
) -> NativeSamplerEngine:
    defaults = {"max_sequences": 16, "max_tokens_per_step": 64, "max_cached_tokens": 2048, "max_adapters": 8}
    return NativeSamplerEngine(base, deterministic=deterministic, share_prefixes=share_prefixes, **(defaults | limits))


def ask(name: str, prompt: Iterable[int], *, num_samples: int = 1, **options: Any) -> GenerationRequest:
    """A request; options go to the sampling parameters or the request, wherever they belong."""
    of_params = {key: options.pop(key) for key in list(options) if key in SamplingParams.__dataclass_fields__}
    params = SamplingParams(**{"max_tokens": 8 if num_samples else 0, **of_params})
    return GenerationRequest(name, tuple(prompt), num_samples, params, **options)


def finish(engine: NativeSamplerEngine, max_steps: int = 2000) -> dict[str, GenerationResult | PlatformError]:
    """Steps until idle; outcomes by name."""
    outcomes = {}
    for _ in range(max_steps):
        if engine.idle:
            return outcomes
        outcomes |= {finished.name: finished.outcome for finished in engine.step()}
    raise AssertionError("the engine does not come to an end")


def run(engine: NativeSamplerEngine, *requests: GenerationRequest) -> list[GenerationResult]:
    """Results of requests that run together and succeed, in order."""
    for request in requests:
        engine.submit(request)
    outcomes = finish(engine)
    results = []
    for request in requests:
        outcome = outcomes[request.name]
        assert isinstance(outcome, GenerationResult), outcome
        results.append(outcome)
    return results
