"""Common beginnings go through the trunk once, and no number changes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from services.core.chunks import content_ids
from services.core.losses import LOSSES
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.trainer.convert import read_example
from services.trainer.engine.batch import Batch
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.prefix_sharing import Extent, Group, find_groups, share
from testing.passes import all_logprobs, logprobs_of, run_alone
from testing.training_data import datum, group, random_data, work
from tests.trainer.memory import small_memory
from tinker_proto.v1 import data_pb2


def sequences(*texts: str) -> list[torch.Tensor]:
    return [torch.tensor([ord(letter) for letter in text]) for text in texts]


def test_neighbours_with_a_common_beginning_form_groups() -> None:
    assert find_groups(sequences("abcx", "abcy", "abcz")) == [Group(3, (0, 1, 2))]
    assert find_groups(sequences("abcx", "abcy", "pqr", "pqs")) == [Group(3, (0, 1)), Group(2, (2, 3))]
    assert find_groups(sequences("ab", "cd")) == [Group(0, (0,)), Group(0, (1,))]
    assert find_groups(sequences("aaa", "aaa")) == [Group(2, (0, 1))], "each keeps a token of its own"
    assert find_groups(sequences("abcdefx", "abcdefy", "az")) == [Group(6, (0, 1)), Group(0, (2,))]


def test_a_common_beginning_ends_before_another_image() -> None:
    def ids(data: bytes) -> torch.Tensor:
        image = data_pb2.Chunk(image=data_pb2.ImageChunk(data=data, format="png", expected_tokens=4))
        return torch.cat([torch.tensor([1, 2, 3]), torch.from_numpy(content_ids(image)), torch.tensor([9])])

    assert find_groups([ids(b"a"), ids(b"a")]) == [Group(7, (0, 1))]
    assert find_groups([ids(b"a"), ids(b"b")]) == [Group(3, (0, 1))]


def test_little_is_not_worth_it() -> None:
    targets = [torch.zeros(10, 1, dtype=torch.int64)] * 2
    assert share(sequences("abbbbbbbbb", "accccccccc"), targets) is None
    assert share(sequences("abcdefghij", "abcdefghxx"), targets) is not None


def test_the_prompt_is_laid_out_once_and_its_head_rows_are_shared() -> None:
    data = [read_example(item, LOSSES["cross_entropy"]) for item in group("cross_entropy", 10, (3, 4, 3))]
    batch = Batch.of(data, torch.device("cpu"))
    assert len(batch.tokens) == 10 + 3 + 4 + 3
    assert batch.stretches == (10, 3, 4, 3)
    assert batch.prefixes == ((0, 0), (0, 10), (0, 10), (0, 10))
    assert len(batch.targets) == 20 + 2, "only the prompt's last position has a target for each"
    assert batch.inputs["weights"].shape == (40, 1)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("backward", [True, False])
def test_no_number_changes(load: Callable[..., BaseModel], loss: str, backward: bool) -> None:
    engine = LocalTrainerEngine(load())
    for index in range(2):
        engine.create_run(f"r{index}", AdapterConfig(4 + index, seed=index)).weights.flat.add_(0.02)
    data = group(loss, 20, (4, 7, 1, 5), seed=1) + random_data(loss, (6,), seed=3) + group(loss, 12, (3, 3), seed=2)
    jobs = [work("r0", data, loss, backward=backward), work("r1", data[2:], loss, backward=backward)]
    outcomes = engine.run_pass(jobs)
    gradients = [engine.run(f"r{index}").gradient.clone() for index in range(2)]
    assert all(bool(gradient.any()) == backward for gradient in gradients)
    for index, job in enumerate(jobs):
        state = engine.run(f"r{index}")
        state.gradient.zero_()
        singly = [
            run_alone(engine, work(f"r{index}", [item], loss, backward=backward)) for item in (data, data[2:])[index]
        ]
        for got, alone in zip(logprobs_of(outcomes[index]), singly, strict=True):
            torch.testing.assert_close(got, logprobs_of(alone)[0], rtol=1e-6, atol=2e-6)
        if backward:
            assert float((state.gradient - gradients[index]).norm() / gradients[index].norm()) < 2e-6
        assert job.backward == backward


def test_recomputed_activations_change_no_bit(load: Callable[..., BaseModel]) -> None:
    results = []
    for most_bytes in (None, 1):
        engine = LocalTrainerEngine(load(), most_bytes=most_bytes)
        state = engine.create_run("run", AdapterConfig(4, seed=0))
        state.weights.flat.add_(0.02)
        outcome = run_alone(engine, work("run", random_data("cross_entropy", (30, 12))))
        results.append((state.gradient, all_logprobs(outcome)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def conversation(turns: int, length: int) -> list[data_pb2.Datum]:
    """Each datum continues the one before, as samples of a dialogue do turn by turn."""
    (whole,) = random_data("cross_entropy", (turns * length,), seed=8)
    tokens = list(whole.model_input.chunks[0].encoded_text.tokens)
    return [datum(tokens[:end], tokens[1 : end + 1]) for end in range(length, turns * length, length)]


@pytest.mark.parametrize("may_share", [True, False])
@pytest.mark.parametrize(
    ("data", "most_rows"),
    [(conversation(8, 12), 8), (group("cross_entropy", 50, (4,) * 8, seed=1), 8)],
    ids=["each continues the last", "one prompt"],
)
def test_rows_are_no_longer_than_their_limit_whatever_is_shared(
    load: Callable[..., BaseModel], data: list[data_pb2.Datum], most_rows: int, may_share: bool
) -> None:
    engine = LocalTrainerEngine(load(), row_tokens=110)
    engine.share_prefixes = may_share
    engine.create_run("run", AdapterConfig(4, seed=0))
    with small_memory(engine, 110) as rows:
        run_alone(engine, work("run", data))
    whole = sum(len(item.model_input.chunks[0].encoded_text.tokens) for item in data)
    assert sum(rows) == whole or (may_share and sum(rows) < 0.8 * whole)
    assert len(rows) < most_rows, "and are filled"


def test_an_extent_counts_what_is_laid_out() -> None:
    draw = random.Random(4)
    for _ in range(200):
        texts = ["".join(draw.choices("ab", k=draw.randint(1, 6))) for _ in range(draw.randint(1, 6))]
        extent = Extent.of(sequences(texts[0])[0])
        for tokens in sequences(*texts[1:]):
            extent = extent.joined_by(tokens)
        layout = share(sequences(*texts), [torch.zeros(len(text), 1, dtype=torch.int64) for text in texts])
        assert extent.tokens == (len(layout.tokens) if layout else sum(map(len, texts)))
