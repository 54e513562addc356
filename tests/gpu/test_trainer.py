"""The trainer on a CUDA device against the same engine on the CPU, and against itself in other batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from services.model.adapters import AdapterConfig, init_adapter
from services.model.attention import PackedSequences
from services.model.base import load_base_model
from services.model.precision import matmul_fp32
from services.model.varlen import varlen_causal
from services.trainer.engine import TrainerEngine
from services.trainer.run_state import RunState
from services.trainer.work import Outcome
from tests.model.fixtures import source
from tests.trainer.data import ADAM, random_data, work

__all__ = ["source"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def _engine(directory: Path, device: str, dtype: torch.dtype) -> TrainerEngine:
    return TrainerEngine(load_base_model(str(directory), name="tiny", device=device, dtype=dtype))


def _trained(engine: TrainerEngine, run: str, config: AdapterConfig) -> tuple[RunState, Outcome]:
    state = engine.create_run(run, config)
    for seed in range(3):
        engine.run_alone(work(run, random_data("cross_entropy", (30, 20, 1), seed=seed)))
        engine.optim_step(run, ADAM)
    return state, engine.run_alone(work(run, random_data("cross_entropy", (30, 20, 1), seed=9)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
@pytest.mark.parametrize(
    ("dtype", "mean_difference"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)], ids=["float32", "bfloat16"]
)
def test_training_agrees_with_the_cpu(
    source: Callable[..., Path], family: str, dtype: torch.dtype, mean_difference: float
) -> None:
    config = AdapterConfig(8, seed=1)
    _, expected = _trained(_engine(source(family), "cpu", torch.float32), "run", config)
    _, actual = _trained(_engine(source(family), "cuda", dtype), "run", config)
    difference = torch.cat(actual.logprobs) - torch.cat(expected.logprobs)
    assert float(difference.abs().mean()) < mean_difference


def test_the_same_seed_gives_the_same_adapter_on_both_devices(source: Callable[..., Path]) -> None:
    host, device = (_engine(source(), name, torch.float32).base for name in ("cpu", "cuda"))
    config = AdapterConfig(8, seed=1)
    assert torch.equal(init_adapter(host, config).flat, init_adapter(device, config).flat.cpu())


@DTYPES
@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_a_nan_run_leaves_the_other_bitwise_unchanged(
    source: Callable[..., Path], family: str, dtype: torch.dtype
) -> None:
    engine = _engine(source(family), "cuda", dtype)
    healthy, _ = _trained(engine, "healthy", AdapterConfig(8, seed=1))
    sick, _ = _trained(engine, "sick", AdapterConfig(8, seed=2))
    jobs = [work("sick", random_data("cross_entropy", (7,))), work("healthy", random_data("cross_entropy", (5, 9)))]
    gradients, outcomes = [], []
    for poison in (1.0, torch.nan):
        sick.weights.flat.mul_(poison)
        healthy.gradient.zero_()
        outcomes.append(engine.run_pass(jobs)[1])
        gradients.append(healthy.gradient.clone())
    assert torch.equal(*gradients)
    before, after = outcomes
    assert isinstance(before, Outcome)
    assert isinstance(after, Outcome)
    assert torch.equal(torch.cat(before.logprobs), torch.cat(after.logprobs))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_varlen_attention_is_causal_attention_of_each_sequence_forward_and_backward(head_dim: int) -> None:
    lengths = (1, 65, 128, 7)
    packed = PackedSequences.of(lengths, CUDA)
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(sum(lengths), heads, head_dim, device=CUDA, dtype=torch.bfloat16, generator=generator)
        for heads in (8, 2, 2)
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    attended = varlen_causal(*leaves, packed.boundaries, max(lengths), scale=0.1)
    upstream = torch.randn(attended.shape, device=CUDA, dtype=torch.bfloat16, generator=generator)
    actual = torch.autograd.grad(attended, leaves, upstream)
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    pieces = [
        F.scaled_dot_product_attention(
            *(tensor.transpose(0, 1) for tensor in triple), is_causal=True, scale=0.1, enable_gqa=True
        ).transpose(0, 1)
        for triple in zip(*(tensor.split(lengths) for tensor in wide), strict=True)
    ]
    expected = torch.autograd.grad(torch.cat(pieces), wide, upstream.float())
    torch.testing.assert_close(attended.float(), torch.cat(pieces), rtol=2e-2, atol=2e-2)
    for mine, theirs in zip(actual, expected, strict=True):
        assert float((mine.float() - theirs).norm() / theirs.norm()) < 2e-2


def test_products_of_bfloat16_keep_float32_results() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    left, right = (torch.randn(shape, device=CUDA, generator=generator) for shape in ((33, 512), (512, 1000)))
    product = matmul_fp32(left.bfloat16(), right.bfloat16())
    exact = left.bfloat16().double() @ right.bfloat16().double()
    assert product.dtype == torch.float32
    assert float((product - exact).abs().max()) < 1e-3
