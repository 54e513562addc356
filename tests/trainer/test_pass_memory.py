"""The memory of passes: the account holds on real models, and the plan follows from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.engine.pass_memory import Activations, PassMemory
from services.trainer.values import PassResult
from testing.passes import run_alone
from testing.training_data import random_data, work

GB = 10**9
MB = 10**6

EIGHT_B = Activations(kept=7 * MB, recomputed=300_000 + 200_000)
"""Of a base model with 8 billion parameters in bfloat16, about."""


def memory(free: int, activations: Activations = EIGHT_B) -> PassMemory:
    return PassMemory(lambda: activations, lambda: free, None)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_account_is_what_a_row_keeps(load: Callable[..., BaseModel], family: str, recompute: bool) -> None:
    """A row of three examples, weighed while it is between its forward and its backward pass."""
    engine = LocalTrainerEngine(load(family), most_bytes=1 if recompute else None)
    engine.create_run("run", AdapterConfig(8, seed=0))
    account = engine.memory.activations
    saved: dict[int, int] = {}
    frozen = {parameter.untyped_storage().data_ptr() for parameter in engine.base.module.parameters()}

    def weigh(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in frozen:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    lengths = (100, 150, 50)
    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        assert isinstance(run_alone(engine, work("run", random_data("cross_entropy", lengths))), PassResult)
    tokens = sum(lengths)
    if not recompute:
        assert sum(saved.values()) == pytest.approx(tokens * account.kept, rel=0.1)
    else:
        assert sum(saved.values()) <= tokens * account.recomputed, "a layer's own is kept by a hook of its own"
        assert account.recomputed < account.kept


def test_rows_on_a_gpu_are_as_long_as_keep_their_activations() -> None:
    assert memory(200 * GB).row_tokens(8192) == 8192
    assert memory(50 * GB).row_tokens(8192) == 4096
    assert memory(15 * GB).row_tokens(8192) == 2048
    assert memory(10 * GB).row_tokens(8192) == 8192, "recomputed; rows that keep them would be short"
    assert memory(5 * GB).row_tokens(8192) == 4096
    assert memory(0).row_tokens(8192) == 256, "a job that does not fit there fails by name"


def test_a_plan_keeps_what_fits_beside_the_gradients() -> None:
    plan = memory(60 * GB).plan(weights=0, longest_part=8192, row_tokens=8192)
    assert (plan.most_tokens, plan.fits) == (8192, True)
    assert plan.keep_tokens == 8192
    crowded = memory(60 * GB).plan(weights=5 * 10**9, longest_part=4096, row_tokens=8192)
    assert 5000 < crowded.keep_tokens < 6000
    assert crowded.most_tokens == crowded.keep_tokens, "shorter rows are better than recomputed ones"
    full = memory(60 * GB).plan(weights=14 * 10**9, longest_part=4096, row_tokens=8192)
    assert full.keep_tokens < 2048
    assert full.most_tokens == 8000, "40 bytes of gradient were free of 60: 4 GB of recomputed rows"
    assert not memory(60 * GB).plan(weights=15 * 10**9, longest_part=4096, row_tokens=8192).fits


def test_a_long_example_is_recomputed_and_others_are_not() -> None:
    plan = memory(30 * GB).plan(weights=0, longest_part=32_768, row_tokens=2048)
    assert plan.fits
    assert 2048 < plan.keep_tokens < 32_768


def test_what_ran_out_takes_half_as_much_from_then_on() -> None:
    trainer = memory(64 * GB)
    before = trainer.plan(0, 4096, 8192)
    trainer.ran_out(0, before)
    after = trainer.plan(0, 4096, 8192)
    assert after.row_bytes <= before.row_bytes // 2
    assert after.fits
    while (plan := trainer.plan(0, 4096, 8192)).fits:
        trainer.ran_out(0, plan)
    assert plan.most_tokens == 4096, "a part is never divided"
