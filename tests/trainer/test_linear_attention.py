"""Base models some of whose layers hand a state from token to token: sequences in one packed row still do not meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.core.errors import FailedPreconditionError
from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights
from services.model.attention import PackedSequences
from services.model.base import BaseModel, load_base_model
from services.model.linear_attention import CHUNK, keep_sequences_apart
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import PassResult
from testing.passes import all_logprobs, logprobs_of, run_alone
from testing.plain_peft import PlainPeft, largest_difference
from testing.rows import perturbed_adapter, random_tokens
from testing.tiny_models import save_model, tiny_config
from testing.training_data import random_data, work
from tests.trainer.test_same_bits import assert_alone_as_together, crowd, random_mix
from tests.trainer.test_sharing import group

FAMILY = "qwen3_5"
LENGTHS = (9, 1, CHUNK + 1, 2, 30, CHUNK, 100)
"""Within a chunk, at its border and beyond it."""

Load = Callable[..., BaseModel]


def packed(base: BaseModel, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Hidden states of sequences in one packed row; attention is the caller's."""
    lengths = [len(sequence) for sequence in sequences]
    row = PackedSequences.of(lengths, base.device)
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    output = base.trunk(input_ids=tokens[None], position_ids=row.position_ids, use_cache=False, sequences=row)
    return list(torch.split_with_sizes(output.last_hidden_state[0], lengths))


@pytest.fixture
def engine(load: Load) -> LocalTrainerEngine:
    """An engine in which jobs share rows, as on a GPU."""
    engine = LocalTrainerEngine(load(FAMILY))
    engine.share_rows = True
    return engine


def add_run(engine: LocalTrainerEngine, name: str, rank: int) -> AdapterWeights:
    config = AdapterConfig(rank, seed=rank)
    state = engine.create_run(name, config)
    state.weights.flat.copy_(perturbed_adapter(engine.base, config).flat)
    return state.weights


def test_tenants_in_one_row_get_what_plain_peft_computes_for_each_datum(
    engine: LocalTrainerEngine, source: Callable[..., Path]
) -> None:
    weights = {name: add_run(engine, name, rank) for name, rank in (("a", 2), ("b", 8), ("c", 5))}
    jobs = [work(name, random_data("cross_entropy", LENGTHS, seed=rank)) for rank, name in enumerate(weights)]
    for job, outcome in zip(jobs, engine.run_pass(jobs), strict=True):
        own = weights[job.training_run_id]
        plain = PlainPeft(source(FAMILY), own.config, own)
        assert isinstance(outcome, PassResult)
        for example, logprobs in zip(job.examples, logprobs_of(outcome), strict=True):
            expected = plain.logprobs(example.tokens.tolist(), torch.from_numpy(example.targets[:, 0]))
            (-(expected * torch.from_numpy(example.inputs["weights"][:, 0])).sum()).backward()
            torch.testing.assert_close(logprobs, expected.detach(), rtol=0, atol=1e-5)
        state = engine.run(job.training_run_id)
        ours = AdapterWeights(state.config, state.weights.layout, state.gradient)
        theirs = {name: tuple(matrix.grad for matrix in plain.matrices(name)) for name in own.linears}
        assert largest_difference(dict(ours.linears), theirs) < 1e-5


def test_a_tenant_of_nans_leaves_its_mates_bitwise_unchanged(engine: LocalTrainerEngine) -> None:
    names = ("first", "sick", "last")
    for rank, name in enumerate(names, 2):
        add_run(engine, name, rank)
    jobs = [work(name, random_data("cross_entropy", LENGTHS, seed=seed)) for seed, name in enumerate(names)]
    healthy = engine.run_pass(jobs)
    gradients = {name: engine.run(name).gradient.clone() for name in names}
    for name in names:
        engine.run(name).gradient.zero_()
    engine.run("sick").weights.flat.fill_(torch.nan)
    beside = engine.run_pass(jobs)
    assert isinstance(beside[1], FailedPreconditionError)
    assert not engine.run("sick").gradient.any()
    for index in (0, 2):
        before, after = healthy[index], beside[index]
        assert isinstance(before, PassResult)
        assert isinstance(after, PassResult)
        assert torch.equal(all_logprobs(before), all_logprobs(after))
        assert torch.equal(engine.run(names[index]).gradient, gradients[names[index]])


def test_padding_reaches_nobody(engine: LocalTrainerEngine) -> None:
    """A longer sequence in the same row changes how far the others are padded, and nothing else."""
    short, other, longer = random_tokens(engine.base, (6, 9, 50))
    expected = packed(engine.base, [short])[0]
    for company in (other, longer):
        for sequences, place in (([short, company], 0), ([company, short], 1)):
            hidden = packed(engine.base, sequences)[place]
            torch.testing.assert_close(hidden, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "gspo"])
def test_a_group_with_one_prompt_gets_what_its_members_get_alone(engine: LocalTrainerEngine, loss: str) -> None:
    add_run(engine, "run", 4)
    data = group(loss, 70, (4, 7, 1, 5), seed=1)
    together = run_alone(engine, work("run", data, loss))
    gradient = engine.run("run").gradient.clone()
    engine.run("run").gradient.zero_()
    alone = [run_alone(engine, work("run", [item], loss)) for item in data]
    for one, other in zip(logprobs_of(together), alone, strict=True):
        torch.testing.assert_close(one, logprobs_of(other)[0], rtol=1e-6, atol=2e-6)
    assert float((engine.run("run").gradient - gradient).norm() / gradient.norm()) < 5e-6


@pytest.mark.long
def test_on_a_cpu_a_job_has_the_same_bits_in_any_company(tmp_path: Path) -> None:
    config = tiny_config(FAMILY)
    config.head_dim = 20  # four heads of a gate that no register divides
    base = load_base_model(str(save_model(tmp_path, config)), name="odd", device="cpu")
    engine = crowd(base)
    for seed in range(4):
        assert_alone_as_together(engine, random_mix(seed))


def test_without_it_one_sequence_shows_in_the_next(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap itself: the layers as transformers has them take a packed row for one sequence."""
    monkeypatch.setattr("services.trainer.engine.packed_rows.keep_sequences_apart", lambda _: None)
    mixing = LocalTrainerEngine(load(FAMILY)).base
    keeping = LocalTrainerEngine(load("qwen3")).base
    for base, differs in ((mixing, True), (keeping, False)):
        first, other, second = random_tokens(base, (6, 6, 9))
        assert torch.equal(packed(base, [first, second])[1], packed(base, [other, second])[1]) != differs


def test_recomputed_activations_change_no_bit(load: Load) -> None:
    gradients = []
    for most_bytes in (None, 1):
        engine = LocalTrainerEngine(load(FAMILY), most_bytes=most_bytes)
        add_run(engine, "run", 4)
        run_alone(engine, work("run", random_data("cross_entropy", LENGTHS)))
        gradients.append(engine.run("run").gradient)
    assert torch.equal(*gradients)


def test_a_model_without_such_layers_stays_as_it_is(load: Load) -> None:
    base = load("llama")
    before = [layer.forward.__func__ for layer in base.trunk.get_submodule("layers").children()]
    keep_sequences_apart(base)
    assert [layer.forward.__func__ for layer in base.trunk.get_submodule("layers").children()] == before
    assert not base.has_linear_attention
    assert load(FAMILY).has_linear_attention
