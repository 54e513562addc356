"""The sampler on a CUDA device against the same engine on the CPU, and against itself in other batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel, load_base_model
from services.sampler import noise
from services.sampler.noise import noise_key
from tests.model.fixtures import load, source
from tests.model.rows import random_tokens
from tests.sampler.fixtures import ask, checkpoint, make_engine, run

__all__ = ["checkpoint", "load", "source"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


def on_cuda(directory: Path, dtype: torch.dtype) -> BaseModel:
    return load_base_model(str(directory), name="tiny-qwen3", device="cuda", dtype=dtype)


def test_noise_has_the_bits_of_the_host() -> None:
    keys = [noise_key(seed, 1, 2) for seed in range(-4, 4)]
    on_device = noise._uniform(keys, 150_000, torch.device("cuda"))
    assert torch.equal(on_device.cpu(), noise._uniform_on_host(keys, 150_000))


@pytest.mark.parametrize(
    ("dtype", "mean_difference"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
def test_scores_agree_with_the_cpu(
    load: Callable[..., BaseModel],
    source: Callable[..., Path],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    mean_difference: float,
) -> None:
    host, device = load(), on_cuda(source(), dtype)
    locations = [None, checkpoint(host, 1)[0], checkpoint(host, 2, rank=7)[0]]
    requests = [
        ask(f"r{index}", prompt, num_samples=0, adapter=locations[index % 3], include_prompt_logprobs=True)
        for index, prompt in enumerate(random_tokens(host, [3, 17, 64, 100, 120, 41]))
    ]
    expected = run(make_engine(host), *requests)
    actual = run(make_engine(device, max_tokens_per_step=37), *requests)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.prompt_logprobs is not None
        assert theirs.prompt_logprobs is not None
        difference = torch.tensor(mine.prompt_logprobs[1:]) - torch.tensor(theirs.prompt_logprobs[1:])
        assert difference.abs().mean() < mean_difference


def test_a_seeded_request_is_the_same_alone_and_in_a_batch(
    load: Callable[..., BaseModel], source: Callable[..., Path], checkpoint: Checkpoint
) -> None:
    location, _ = checkpoint(load(), 1)
    engine = make_engine(on_cuda(source(), torch.float32))
    requests = [
        ask(f"r{index}", prompt, seed=index, adapter=location if index % 2 else None, top_p=0.95, top_k=40)
        for index, prompt in enumerate(random_tokens(load(), range(3, 67, 4)))
    ]
    together = run(engine, *requests)
    for request, result in zip(requests, together, strict=True):
        assert run(engine, request)[0].sequences[0].tokens == result.sequences[0].tokens
