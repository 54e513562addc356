"""A job has the same bits alone and in any company, however rows were filled, so that a replay equals the original.

Replays carry operations out one at a time, while they may have shared a pass when they were first carried out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from services.core.errors import FailedPreconditionError
from services.model import rowwise
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel, load_base_model
from services.trainer.engine.isolation import run_isolated
from services.trainer.engine.job_under_way import JobUnderWay
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.rows import divide, fill_rows
from services.trainer.values import PassJob, PassResult
from testing.passes import all_logprobs, run_alone
from testing.rows import perturbed_adapter
from testing.tiny_models import save_model
from testing.training_data import ADAM, random_data, work
from tests.trainer.test_sharing import group

LOSSES = ("cross_entropy", "importance_sampling", "ppo", "gspo")
LENGTHS = (1, 1, 2, 3, 7, 8, 16, 17, 31, 40, 65)


@pytest.fixture
def wide(tmp_path: Path) -> BaseModel:
    """A model of sizes that no register divides, with a vocabulary whose sums torch splits among threads."""
    config = LlamaConfig(
        vocab_size=33_003,
        hidden_size=92,
        intermediate_size=250,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return load_base_model(str(save_model(tmp_path / "wide", config)), name="wide", device="cpu")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def crowd(base: BaseModel, row_tokens: int | None = None) -> LocalTrainerEngine:
    """Five runs of different ranks and targets, none of them fresh."""
    engine = LocalTrainerEngine(base, row_tokens=row_tokens)
    for index, rank in enumerate((1, 3, 8, 16, 64)):
        config = AdapterConfig(rank, seed=index, train_unembed=index != 2, train_mlp=index != 3)
        engine.create_run(f"r{index}", config).weights.flat.copy_(perturbed_adapter(base, config).flat)
    return engine


def random_mix(seed: int) -> list[PassJob]:
    """Jobs of two to five runs: groups with one prompt or data of any lengths, one or three targets a position."""
    draw = random.Random(seed)
    mix = []
    for index in draw.sample(range(5), draw.randint(2, 5)):
        loss, number = draw.choice(LOSSES), 100 * seed + index
        if draw.random() < 0.3:
            data = group(loss, draw.randint(5, 40), tuple(draw.choices(LENGTHS, k=draw.randint(2, 4))), seed=number)
        else:
            lengths = draw.choices(LENGTHS, k=draw.randint(1, 4))
            data = random_data(loss, lengths, seed=number, k=draw.choice((None, 3)))
        mix.append(work(f"r{index}", data, loss, backward=draw.random() < 0.8))
    return mix


def assert_alone_as_together(engine: LocalTrainerEngine, mix: Sequence[PassJob]) -> None:
    """Logprobs, metrics, gradients, and weights after a step."""
    before = [engine.run(job.training_run_id).buffer.clone() for job in mix]
    together = run_isolated(engine, mix)
    states = []
    for job, buffer in zip(mix, before, strict=True):
        run = engine.run(job.training_run_id)
        engine.optim_step(job.training_run_id, ADAM)
        states.append(run.buffer.clone())
        run.buffer.copy_(buffer)
        run.step = 0
    for job, outcome, buffer in zip(mix, together, states, strict=True):
        assert isinstance(outcome, PassResult)
        alone = run_alone(engine, job)
        engine.optim_step(job.training_run_id, ADAM)
        assert alone.metrics == outcome.metrics
        assert torch.equal(all_logprobs(alone), all_logprobs(outcome))
        assert torch.equal(engine.run(job.training_run_id).buffer, buffer)
        engine.run(job.training_run_id).step = 0


@pytest.mark.long
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_random_mixes_of_tiny_sizes(load: Callable[..., BaseModel], family: str) -> None:
    engine = crowd(load(family, tied=family == "qwen3"))
    assert engine.share_rows
    for seed in range(6):
        assert_alone_as_together(engine, random_mix(seed))


@pytest.mark.long
@pytest.mark.usefixtures("threads")
def test_random_mixes_of_odd_sizes(wide: BaseModel) -> None:
    engine = crowd(wide)
    for seed in range(20, 24):
        assert_alone_as_together(engine, random_mix(seed))
    one_token_each = [work(f"r{index}", random_data("cross_entropy", (1,), seed=index)) for index in range(5)]
    assert_alone_as_together(engine, one_token_each)


def test_jobs_that_need_several_rows(load: Callable[..., BaseModel]) -> None:
    engine = crowd(load(), row_tokens=50)
    mix = [
        work(f"r{index}", random_data("ppo", (20, 9, 31, 1, 17, 8 + index), seed=index), "ppo") for index in range(5)
    ]
    jobs = [JobUnderWay(job, engine.run(job.training_run_id)) for job in mix]
    rows = list(fill_rows([part for job in jobs for part in divide(job, 50, may_share=True)], 50))
    assert any(len({part.job for part in row}) > 1 for row in rows), "rows are shared"
    assert any(len([row for row in rows if any(part.job is job for part in row)]) > 1 for job in jobs), (
        "jobs are divided"
    )
    assert_alone_as_together(engine, mix)


def test_a_pass_that_fails_and_is_done_again(load: Callable[..., BaseModel]) -> None:
    mix = random_mix(3)
    engine = crowd(load())
    expected = [run_alone(engine, job) for job in mix]
    gradients = [engine.run(job.training_run_id).gradient for job in mix]
    again = crowd(load())
    outcomes = run_isolated(again, [*mix, work("nobody", random_data("cross_entropy", (3,)))])
    for outcome, alone, gradient, job in zip(outcomes[:-1], expected, gradients, mix, strict=True):
        assert isinstance(outcome, PassResult)
        assert torch.equal(all_logprobs(alone), all_logprobs(outcome))
        assert torch.equal(again.run(job.training_run_id).gradient, gradient)


def test_out_of_memory_makes_passes_smaller_and_recomputes_activations(load: Callable[..., BaseModel]) -> None:
    mix = random_mix(5)
    engine = crowd(load())
    expected = [run_alone(engine, job) for job in mix]
    gradients = [engine.run(job.training_run_id).gradient for job in mix]
    scarce = crowd(load())
    assert scarce.plan(mix).keep_tokens == scarce.row_tokens, "there is memory"

    def check(*_: object) -> None:
        if torch.is_grad_enabled() and not scarce.rows.recomputing:
            raise torch.OutOfMemoryError("no memory for the activations of a whole row")

    scarce.base.trunk.register_forward_pre_hook(check)
    for outcome, alone, gradient, job in zip(run_isolated(scarce, mix), expected, gradients, mix, strict=True):
        assert isinstance(outcome, PassResult)
        assert outcome.metrics == alone.metrics
        assert torch.equal(scarce.run(job.training_run_id).gradient, gradient)


def test_where_products_are_not_row_wise_rows_are_not_shared(
    load: Callable[..., BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise FailedPreconditionError("no packed products", reason="NOT_DETERMINISTIC")

    monkeypatch.setattr(rowwise, "pack", missing)
    engine = crowd(load())
    assert not engine.share_rows
    for seed in range(4):
        assert_alone_as_together(engine, random_mix(seed))


def test_a_product_that_only_looks_row_wise_is_found_out(
    load: Callable[..., BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = rowwise.pack

    def pretends(weight: torch.Tensor, bias: torch.Tensor | None = None) -> rowwise.Product:
        product = honest(weight, bias)
        return lambda rows: product(rows) if len(rows) > 4 else product(rows).mul(1 + 1e-6)

    monkeypatch.setattr(rowwise, "pack", pretends)
    assert not LocalTrainerEngine(load()).share_rows
