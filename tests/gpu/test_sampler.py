"""The sampler on a CUDA device against the same engine on the CPU, and against itself in other batches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel, load_base_model
from services.model.varlen import Slots, Stretches, varlen_slots
from services.sampler.engine import noise
from services.sampler.engine.noise import noise_key
from testing.rows import random_tokens
from tests.model.fixtures import load, source
from tests.sampler.fixtures import ask, checkpoint, make_engine, run

__all__ = ["checkpoint", "load", "source"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


def on(directory: Path, device: str, dtype: torch.dtype) -> BaseModel:
    return load_base_model(str(directory), name="tiny-qwen3", device=device, dtype=dtype)


def test_noise_has_the_bits_of_the_host() -> None:
    keys = [noise_key(seed, 1, 2) for seed in range(-4, 4)]
    on_device = noise.uniform_on_device(keys, 150_000, torch.device("cuda"))
    assert torch.equal(on_device.cpu(), noise.uniform_on_host(keys, 150_000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_scores_agree_with_the_cpu(
    load: Callable[..., BaseModel], source: Callable[..., Path], checkpoint: Checkpoint, dtype: torch.dtype
) -> None:
    """In bfloat16 as well as the CPU agrees with itself."""
    host = load()
    locations = [None, checkpoint(host, 1)[0], checkpoint(host, 2, rank=7)[0]]
    requests = [
        ask(f"r{index}", prompt, num_samples=0, adapter=locations[index % 3], include_prompt_logprobs=True)
        for index, prompt in enumerate(random_tokens(host, [3, 17, 64, 100, 120, 41]))
    ]

    def scores(base: BaseModel) -> torch.Tensor:
        results = run(make_engine(base, max_tokens_per_step=37), *requests)
        return torch.cat([torch.tensor((result.prompt_logprobs or ())[1:]) for result in results])

    expected = scores(host)
    error = (scores(on(source(), "cuda", dtype)) - expected).abs().mean()
    control = (scores(on(source(), "cpu", dtype)) - expected).abs().mean()
    assert error < (1e-4 if dtype == torch.float32 else 2 * control)


def test_a_seeded_request_is_the_same_alone_and_in_a_batch(
    load: Callable[..., BaseModel], source: Callable[..., Path], checkpoint: Checkpoint
) -> None:
    location, _ = checkpoint(load(), 1)
    engine = make_engine(on(source(), "cuda", torch.float32))
    requests = [
        ask(f"r{index}", prompt, seed=index, adapter=location if index % 2 else None, top_p=0.95, top_k=40)
        for index, prompt in enumerate(random_tokens(load(), range(3, 67, 4)))
    ]
    together = run(engine, *requests)
    for request, result in zip(requests, together, strict=True):
        assert run(engine, request)[0].sequences[0].tokens == result.sequences[0].tokens


def test_what_is_generated_with_many_adapters_scores_as_on_the_cpu(
    load: Callable[..., BaseModel], source: Callable[..., Path], checkpoint: Checkpoint
) -> None:
    host = load()
    engine = make_engine(on(source(), "cuda", torch.bfloat16), max_tokens_per_step=40)
    locations = [None, *(checkpoint(host, seed, rank=rank)[0] for seed, rank in enumerate((4, 7, 16, 8, 1)))]
    scoring = make_engine(host)
    for count in (2, 6):  # the second time more adapters than there was place for
        requests = [
            ask(f"r{index}", prompt, seed=index, num_samples=1 + index % 3, adapter=locations[index % count])
            for index, prompt in enumerate(random_tokens(host, [3, 17, 64, 100, 5, 41, 2, 90], seed=count))
        ]
        differences = []
        for request, result in zip(requests, run(engine, *requests), strict=True):
            for sampled in result.sequences:
                tokens = [*request.prompt, *sampled.tokens]
                ask_again = ask("s", tokens, num_samples=0, adapter=request.adapter, include_prompt_logprobs=True)
                (scores,) = run(scoring, ask_again)
                assert scores.prompt_logprobs is not None
                expected = torch.tensor(scores.prompt_logprobs[len(request.prompt) :])
                differences.append((torch.tensor(sampled.logprobs) - expected).abs())
        assert torch.cat(differences).mean() < 5e-2


def test_attention_sees_the_rows_in_use_and_no_others() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    keys, values = (
        torch.randn(4096, 2, 64, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(2)
    )
    starts, used, lengths = [1000, 0, 500, 3000], [300, 17, 1, 64], [1, 5, 1, 64]
    query = torch.randn(sum(lengths), 8, 64, device="cuda", dtype=torch.bfloat16, generator=generator)
    in_use = torch.zeros(4096, dtype=torch.bool, device="cuda")
    for start, rows in zip(starts, used, strict=True):
        in_use[start : start + rows] = True

    def attended(keys: torch.Tensor, values: torch.Tensor, chunks: slice, longest: int) -> torch.Tensor:
        own = lengths[chunks]
        before = sum(lengths[: chunks.start])
        queries = Stretches(torch.tensor([0, *accumulate(own)], dtype=torch.int32, device="cuda"), max(own))
        slots = Slots(
            torch.tensor([*starts[chunks], 4096], dtype=torch.int32, device="cuda"),
            torch.tensor(used[chunks], dtype=torch.int32, device="cuda"),
            longest,
        )
        return varlen_slots(query[before : before + sum(own)], keys, values, queries, slots, scale=0.2)

    together = attended(keys, values, slice(0, 4), 300)
    poisoned = [tensor.masked_fill(~in_use[:, None, None], torch.nan) for tensor in (keys, values)]
    assert torch.equal(attended(*poisoned, slice(0, 4), 4096), together)
    before = 0
    for start, rows, length in zip(starts, used, lengths, strict=True):
        triple = (query[before : before + length], keys[start : start + rows], values[start : start + rows])
        mask = torch.ones(length, rows, dtype=torch.bool, device="cuda").tril(rows - length)
        expected = F.scaled_dot_product_attention(
            *(tensor.float().transpose(0, 1) for tensor in triple), attn_mask=mask, scale=0.2, enable_gqa=True
        ).transpose(0, 1)
        torch.testing.assert_close(together[before : before + length].float(), expected, rtol=2e-2, atol=2e-2)
        before += length
    alone = attended(keys, values, slice(0, 1), 4096)
    torch.testing.assert_close(alone, together[:1], rtol=2e-2, atol=2e-2)
