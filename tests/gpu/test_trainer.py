"""The trainer on a CUDA device against the same engine on the CPU, and against itself in other batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from services.model.adapter_config import AdapterConfig
from services.model.adapters import init_adapter
from services.model.base import load_base_model
from services.model.precision import matmul_fp32
from services.model.varlen import Stretches, varlen_causal
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.run_state import RunState
from services.trainer.values import PassResult
from testing.passes import all_logprobs, logprobs_of, run_alone
from testing.training_data import ADAM, group, random_data, work
from tests.model.fixtures import source

__all__ = ["source"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def _engine(directory: Path, device: str, dtype: torch.dtype) -> LocalTrainerEngine:
    return LocalTrainerEngine(load_base_model(str(directory), name="tiny", device=device, dtype=dtype))


def _trained(engine: LocalTrainerEngine, run: str, config: AdapterConfig) -> tuple[RunState, PassResult]:
    state = engine.create_run(run, config)
    for seed in range(3):
        run_alone(engine, work(run, random_data("cross_entropy", (30, 20, 1), seed=seed)))
        engine.optim_step(run, ADAM)
    return state, run_alone(engine, work(run, random_data("cross_entropy", (30, 20, 1), seed=9)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
@DTYPES
def test_training_agrees_with_the_cpu(source: Callable[..., Path], family: str, dtype: torch.dtype) -> None:
    """In bfloat16 as well as the CPU agrees with itself."""
    config = AdapterConfig(8, seed=1)
    expected = torch.cat(_trained(_engine(source(family), "cpu", torch.float32), "run", config)[1].logprobs)

    def error(device: str) -> float:
        _, outcome = _trained(_engine(source(family), device, dtype), "run", config)
        return float((all_logprobs(outcome) - expected).abs().mean())

    assert error("cuda") < (1e-4 if dtype == torch.float32 else 2 * error("cpu"))


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
    assert isinstance(before, PassResult)
    assert isinstance(after, PassResult)
    assert torch.equal(all_logprobs(before), all_logprobs(after))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_varlen_attention_is_causal_attention_to_each_sequences_own_keys(head_dim: int) -> None:
    queries, keys = (1, 65, 128, 7), (1, 165, 128, 40)
    generator = torch.Generator("cuda").manual_seed(0)
    leaves = [
        torch.randn(sum(lengths), heads, head_dim, device=CUDA, dtype=torch.bfloat16, generator=generator)
        for heads, lengths in ((8, queries), (2, keys), (2, keys))
    ]
    attended = varlen_causal(
        *(tensor.requires_grad_() for tensor in leaves), _stretches(queries), _stretches(keys), scale=0.1
    )
    upstream = torch.randn(attended.shape, device=CUDA, dtype=torch.bfloat16, generator=generator)
    actual = torch.autograd.grad(attended, leaves, upstream)
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    pieces = [
        F.scaled_dot_product_attention(
            *(tensor.transpose(0, 1) for tensor in triple),
            attn_mask=torch.ones(len(triple[0]), len(triple[1]), dtype=torch.bool, device=CUDA).tril(
                len(triple[1]) - len(triple[0])
            ),
            scale=0.1,
            enable_gqa=True,
        ).transpose(0, 1)
        for triple in zip(wide[0].split(queries), wide[1].split(keys), wide[2].split(keys), strict=True)
    ]
    expected = torch.autograd.grad(torch.cat(pieces), wide, upstream.float())
    torch.testing.assert_close(attended.float(), torch.cat(pieces), rtol=2e-2, atol=2e-2)
    for mine, theirs in zip(actual, expected, strict=True):
        assert float((mine.float() - theirs).norm() / theirs.norm()) < 2e-2


def _stretches(lengths: Sequence[int]) -> Stretches:
    return Stretches(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=CUDA), max(lengths))


@pytest.mark.parametrize("rank", [8, 24])
def test_grouped_adapters_are_those_one_after_another(source: Callable[..., Path], rank: int) -> None:
    engine = _engine(source(), "cuda", torch.bfloat16)
    runs = [f"run{index}" for index in range(5)]
    jobs = [
        work(run, random_data("cross_entropy", lengths))
        for run, lengths in zip(runs, ((7,), (1,), (40, 3), (64,), (11,)), strict=True)
    ]
    for index, run in enumerate(runs):
        state = engine.create_run(run, AdapterConfig(rank, seed=index))
        run_alone(engine, work(run, random_data("cross_entropy", (30,), seed=index)))
        engine.optim_step(run, ADAM)
        assert state.gradient.count_nonzero() == 0
    results = []
    for together in (True, False):
        engine.rows.lora.grouped = together
        outcomes = engine.run_pass(jobs)
        gradients = [engine.run(run).gradient.clone() for run in runs]
        results.append((outcomes, gradients))
        for run in runs:
            engine.run(run).gradient.zero_()
    for index in range(len(runs)):
        (mine, theirs), (grouped, looped) = ([result[part][index] for result in results] for part in (0, 1))
        assert isinstance(mine, PassResult)
        assert isinstance(theirs, PassResult)
        assert float((all_logprobs(mine) - all_logprobs(theirs)).abs().mean()) < 2e-2
        assert float((grouped - looped).norm() / looped.norm()) < 5e-2


@DTYPES
def test_shared_beginnings_change_no_gradient(source: Callable[..., Path], dtype: torch.dtype) -> None:
    engine = _engine(source(), "cuda", dtype)
    state = engine.create_run("run", AdapterConfig(8, seed=1))
    run_alone(engine, work("run", random_data("cross_entropy", (30,))))
    engine.optim_step("run", ADAM)
    job = work("run", group("cross_entropy", 50, (9, 1, 14), seed=1))
    gradients, logprobs = [], []
    for share in (True, False):
        engine.share_prefixes = share
        logprobs.append(torch.cat(logprobs_of(run_alone(engine, job))))
        gradients.append(state.gradient.clone())
        state.gradient.zero_()
    most = 1e-5 if dtype == torch.float32 else 5e-2
    assert float((logprobs[0] - logprobs[1]).abs().mean()) < most
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < most


@pytest.mark.parametrize(
    ("dtype", "alone"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)], ids=["float32", "bfloat16"]
)
def test_a_run_that_is_replayed(source: Callable[..., Path], dtype: torch.dtype, alone: float) -> None:
    """In the same company to the same bits; alone to a part of the way that its weights have gone."""

    def weights_after(*runs: str) -> tuple[torch.Tensor, torch.Tensor]:
        engine = _engine(source(), "cuda", dtype)
        for seed, run in enumerate(runs):
            engine.create_run(run, AdapterConfig(8, seed=seed))
        first = engine.run("a").weights.flat.clone()
        for step in range(20):
            engine.run_pass([work(run, random_data("cross_entropy", (40, 13, 7), seed=step)) for run in runs])
            for run in runs:
                engine.optim_step(run, ADAM)
        return first, engine.run("a").weights.flat

    first, last = weights_after("a", "b", "c")
    assert torch.equal(weights_after("a", "b", "c")[1], last)
    _, replayed = weights_after("a")
    assert float((replayed - last).norm() / (last - first).norm()) < alone


def test_products_of_bfloat16_keep_float32_results() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    left, right = (torch.randn(shape, device=CUDA, generator=generator) for shape in ((33, 512), (512, 1000)))
    product = matmul_fp32(left.bfloat16(), right.bfloat16())
    exact = left.bfloat16().double() @ right.bfloat16().double()
    assert product.dtype == torch.float32
    assert float((product - exact).abs().max()) < 1e-3
