"""T6: a job alone and among others, the platform and plain PEFT, and a tenant of NaNs.

Alone against batched is exactly 0 by design, so a control runs the same comparison with the usual matrix products
instead of the row-wise ones: it must see a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from trainer_load import CONFIG, engine_with, example, jobs
from trainer_table import Targets

from services.model.adapter_config import AdapterConfig
from services.model.lora import MultiLoraLinear
from services.model.rowwise import FrozenProducts
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import PassJob, PassResult
from testing.passes import logprobs_of
from testing.plain_peft import PlainPeft
from testing.rows import perturbed_adapter

_LENGTHS = (1, 2, 3, 5, 9, 40, 47, 64)


@dataclass(frozen=True)
class Found:
    """What a pass gave each run."""

    logprobs: list[Tensor]
    gradients: list[Tensor]


def exactness(targets: Targets, source: Path) -> None:
    """T6."""
    engine = engine_with(source, len(_LENGTHS))
    for index in range(len(_LENGTHS)):
        engine.run(f"r{index}").weights.flat.copy_(perturbed_adapter(engine.base, AdapterConfig(8, seed=index)).flat)
    work = jobs([[example(length, index)] for index, length in enumerate(_LENGTHS)])
    together = found(engine, [work])
    alone = found(engine, [[item] for item in work])
    logprob_gaps, gradient_gaps = gaps(alone, together)
    targets.report("T6", "alone against batched: logprobs", 2e-6, logprob_gaps, at_most=True)
    targets.report("T6", "alone against batched: gradient, relative", 2e-6, gradient_gaps, at_most=True)
    against_peft(targets, source, engine, work, together)
    engine.run("r3").weights.flat.fill_(torch.nan)
    with_nans = found(engine, [work])
    same = [
        torch.equal(one, other)
        for index, (one, other) in enumerate(zip(with_nans.gradients, together.gradients, strict=True))
        if index != 3
    ]
    targets.report("T6", "batch mates of a NaN tenant: share bitwise unchanged", 1.0, [sum(same) / len(same)])
    engine.run("r3").weights.flat.copy_(perturbed_adapter(engine.base, AdapterConfig(8, seed=3)).flat)
    use_plain_products(engine)
    control = gaps(found(engine, [[item] for item in work]), found(engine, [work]))
    targets.note("T6", "control, plain products, largest: logprobs", [max(control[0])])
    targets.note("T6", "control, plain products, largest: gradient, relative", [max(control[1])])


def found(engine: LocalTrainerEngine, passes: Sequence[Sequence[PassJob]]) -> Found:
    """Carries out passes of one job a run, each run starting without a gradient."""
    work = [item for batch in passes for item in batch]
    for item in work:
        engine.run(item.training_run_id).gradient.zero_()
    outcomes = [outcome for batch in passes for outcome in engine.run_pass(batch)]
    logprobs = [logprobs_of(outcome)[0] for outcome in outcomes if isinstance(outcome, PassResult)]
    return Found(logprobs, [engine.run(item.training_run_id).gradient.clone() for item in work])


def gaps(one: Found, other: Found) -> tuple[list[float], list[float]]:
    """Largest difference of logprobs, and relative difference of the gradient, for each run."""
    return (
        [float((a - b).abs().max()) for a, b in zip(logprobs_of(one), logprobs_of(other), strict=True)],
        [float((a - b).norm() / b.norm()) for a, b in zip(one.gradients, other.gradients, strict=True)],
    )


def against_peft(
    targets: Targets, source: Path, engine: LocalTrainerEngine, work: Sequence[PassJob], ours: Found
) -> None:
    """The longest run's numbers against a plain PEFT model's."""
    state, (own,) = engine.run(work[-1].training_run_id), work[-1].examples
    plain = PlainPeft(source, CONFIG, state.weights)
    logprobs = plain.logprobs(own.tokens.tolist(), torch.from_numpy(own.targets[:, 0]))
    (-logprobs.sum()).backward()
    gradient = torch.cat([m.grad.reshape(-1) for name in state.weights.linears for m in plain.matrices(name)])
    theirs = Found([logprobs.detach()], [gradient])
    logprob_gaps, gradient_gaps = gaps(Found(ours.logprobs[-1:], ours.gradients[-1:]), theirs)
    targets.report("T6", "plain PEFT: logprobs", 1e-5, logprob_gaps, at_most=True)
    targets.report("T6", "plain PEFT: gradient, relative", 1e-5, gradient_gaps, at_most=True)


def use_plain_products(engine: LocalTrainerEngine) -> None:
    """Torch's usual matrix products in all linears."""
    for linear in engine.base.module.modules():
        if isinstance(linear, MultiLoraLinear):
            to_input = partial(torch.matmul, other=linear.weight)
            linear.products = FrozenProducts(partial(F.linear, weight=linear.weight), to_input, packed=False)
