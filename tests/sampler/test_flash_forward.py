"""The GPU's packed forward on the CPU: flash attention and CUDA graphs are replaced by what they compute, nothing else.

Against the engine that takes slots and adapters one by one, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.core.errors import FailedPreconditionError, ResourceExhaustedError
from services.core.storage.uploads import WEIGHTS_FILE
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.varlen import Slots, Stretches
from services.sampler.engine import attention, flash_forward
from services.sampler.engine.flash_forward import FlashForward
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.engine.recorded import Call
from services.sampler.request import GenerationResult
from testing.rows import random_tokens
from tests.sampler.fixtures import ask, finish, make_engine, run

Load = Callable[..., BaseModel]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]


def attend(
    query_THD: Tensor, keys_RGD: Tensor, values_RGD: Tensor, queries: Stretches, slots: Slots, *, scale: float | None
) -> Tensor:
    """Each chunk's tokens are the last of its slot."""
    ends = queries.boundaries.tolist()
    attended = []
    for start, end, first, used in zip(
        ends[:-1], ends[1:], slots.starts.tolist()[:-1], slots.used.tolist(), strict=True
    ):
        assert end - start <= queries.longest
        assert used <= slots.longest
        mask = torch.ones(end - start, used, dtype=torch.bool).tril(used - (end - start))
        triple = (query_THD[start:end], keys_RGD[first : first + used], values_RGD[first : first + used])
        heads_first = (tensor.transpose(0, 1) for tensor in triple)
        one = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale, enable_gqa=True)
        attended.append(one.transpose(0, 1))
    return torch.cat(attended)


class Records:
    """How many calls were recorded and how often they were replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, call: Call) -> Call:
        self.recorded += 1

        def replay() -> Tensor:
            self.replayed += 1
            return call()

        return replay


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch, records: Records) -> Callable[..., NativeSamplerEngine]:
    """An engine that runs as on a GPU."""
    monkeypatch.setattr(attention, "varlen_slots", attend)
    monkeypatch.setattr(flash_forward, "CudaRecord", lambda: records)

    def made(base: BaseModel, **limits: int) -> NativeSamplerEngine:
        with monkeypatch.context() as patch:
            patch.setattr(FlashForward, "can_run", staticmethod(lambda base: True))
            # A row that no slot has, as a store on a GPU has one.
            patch.setattr("services.sampler.engine.kv.spare_rows", lambda device: 1)
            return make_engine(base, **limits)

    return made


def assert_near(logprobs: Sequence[float], expected: Sequence[float]) -> None:
    torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), atol=1e-5, rtol=0)


def test_every_kind_of_step_with_any_adapters(
    load: Load, checkpoint: Checkpoint, flash: Callable[..., NativeSamplerEngine], records: Records
) -> None:
    base = load()
    alone, other = "model.layers.1.self_attn.v_proj", "model.layers.0.mlp.up_proj"
    own = {"target_modules": (alone, other, "lm_head"), "rank_pattern": {alone: 11}, "alpha_pattern": {other: 0.9}}
    adapters = [
        None,
        checkpoint(base, 1)[0],
        checkpoint(base, 2, rank=7, train_mlp=False)[0],
        checkpoint(base, 3, **own)[0],
    ]
    prompts = random_tokens(base, [3, 17, 40, 5, 64, 9, 31, 2, 12, 77])
    requests = [
        ask(f"r{i}", prompt, seed=i, adapter=adapters[i % 4], num_samples=1 + i % 3, include_prompt_logprobs=i % 2 == 0)
        for i, prompt in enumerate(prompts)
    ]
    expected = run(make_engine(base), *requests)
    engine = flash(load(), max_tokens_per_step=37)
    for wanted in ([0], [1, 4, 8], range(10)):  # the bank grows while steps are recorded
        chosen = [requests[index] for index in wanted]
        for index, result in zip(wanted, run(engine, *chosen), strict=True):
            for mine, theirs in zip(result.sequences, expected[index].sequences, strict=True):
                assert mine.tokens == theirs.tokens
                torch.testing.assert_close(
                    torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs), atol=1e-5, rtol=0
                )
            if (scores := result.prompt_logprobs) is not None:
                own, other = (torch.tensor(row[1:]) for row in (scores, expected[index].prompt_logprobs or ()))
                torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
    assert records.replayed > records.recorded > 2


def test_a_nan_adapter_stays_in_its_rows(
    load: Load, checkpoint: Checkpoint, flash: Callable[..., NativeSamplerEngine]
) -> None:
    base = load()
    healthy, sick = checkpoint(base, 1)[0], checkpoint(base, 2)[0]
    requests = [ask("a", [5, 6, 7], adapter=healthy, seed=1), ask("b", [8, 9], adapter=sick), ask("c", [3, 4])]
    before = run(flash(base), *requests)
    tensors = load_file(sick / WEIGHTS_FILE)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, sick / WEIGHTS_FILE)
    engine = flash(load())
    for request in requests:
        engine.submit(request)
    outcomes = finish(engine)
    for name, result in (("a", before[0]), ("c", before[2])):
        outcome = outcomes[name]
        assert isinstance(outcome, GenerationResult)
        assert outcome.sequences[0].tokens == result.sequences[0].tokens
        assert_near(outcome.sequences[0].logprobs, result.sequences[0].logprobs)
    assert isinstance(outcomes["b"], FailedPreconditionError)


def test_an_adapter_that_there_is_no_memory_for_fails_alone(
    load: Load, checkpoint: Checkpoint, flash: Callable[..., NativeSamplerEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load()
    small, large = checkpoint(base, 1)[0], checkpoint(base, 2, rank=16)[0]
    request = ask("a", [5, 6, 7], adapter=small, seed=1, max_tokens=20)
    (expected,) = run(flash(base), request)
    engine = flash(load())
    engine.submit(request)
    for _ in range(5):
        engine.step()
    zeros = torch.zeros

    def short_of_memory(*shape: int, **options: Any) -> Tensor:
        if len(shape) == 3 and 16 in shape:
            raise torch.OutOfMemoryError("there is no memory")
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", short_of_memory)
    engine.submit(ask("b", [5, 6, 7], adapter=large))
    outcomes = finish(engine)
    assert isinstance(refused := outcomes["b"], ResourceExhaustedError)
    assert refused.reason == "OUT_OF_MEMORY"
    assert outcomes["a"] == expected
